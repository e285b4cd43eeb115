#include "data/clean_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/html.h"
#include "base/text.h"

namespace cachalot {

namespace {

// What a reason means, in words; the first of the list that the reason begins with.
struct Meaning {
  std::string_view reason, text;
};
constexpr Meaning kMeanings[] = {
    {"read.too_long", "longer than max_document"},
    {"read.bad_json", "a line that is no JSON object"},
    {"read.no_text", "a JSON line without text"},
    {"read.not_text", "in no encoding that is known, or with NUL bytes"},
    {"read.empty", "nothing but white space"},
    {"language", "not one of the languages asked for, or not clearly"},
    {"evaluation", "holds words of an evaluation item"},
    {"duplicate.exact", "the words of an earlier document"},
    {"duplicate.near", "nearly an earlier document"},
    {"max_replacement", "characters lost in an earlier conversion (U+FFFD)"},
    {"gopher_quality.min_words", "too few words"},
    {"gopher_quality.max_words", "too many words"},
    {"gopher_quality.min_mean_word", "words too short: lists of letters or numbers"},
    {"gopher_quality.max_mean_word", "words too long: addresses, encoded data"},
    {"gopher_quality.max_symbols", "full of # or ..."},
    {"gopher_quality.max_bullet_lines", "lines are nearly all bullets"},
    {"gopher_quality.max_ellipsis_lines", "lines that break off with ..."},
    {"gopher_quality.min_alphabetic", "words without letters: tables, numbers"},
    {"gopher_quality.min_stop_words", "no running text: the commonest words of its language are missing"},
    {"gopher_repetition.lines", "lines that repeat"},
    {"gopher_repetition.paragraphs", "paragraphs that repeat"},
    {"gopher_repetition.line_chars", "lines that repeat"},
    {"gopher_repetition.paragraph_chars", "paragraphs that repeat"},
    {"gopher_repetition.top_", "a few words over and over"},
    {"gopher_repetition.dup_", "phrases that repeat"},
    {"c4.min_sentences", "too few sentences"},
    {"c4.lorem_ipsum", "filler text"},
    {"c4.curly_bracket", "curly brackets"},
    {"fineweb.min_end_marks", "lines that end without an end mark"},
    {"fineweb.max_short_lines", "nearly all lines short: menus, lists"},
    {"fineweb.max_duplicate_chars", "lines that repeat"},
    {"fineweb.max_newlines", "hardly any words a line"},
    {"code.max_line", "a very long line: data or minified"},
    {"code.max_mean_line", "very long lines: data or minified"},
    {"code.min_alphanumeric", "hardly any letters: data"},
    {"code.min_chars", "nearly empty"},
    {"code.generated", "made by a program, by its own account"},
};

std::string_view meaning(std::string_view reason) {
  for (const Meaning& m : kMeanings)
    if (reason.starts_with(m.reason)) return m.text;
  return "";
}

constexpr std::string_view kHead = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cachalot data clean</title>
<style>
:root { --ink: #1b2430; --soft: #5d6b7c; --line: #dde3ea; --back: #fff; --bar: #2f6f9f; --keep: #3b8f6a; --shade: #f5f7f9 }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ee; --soft: #97a4b3; --line: #333d49; --back: #14191f;
  --bar: #5b9fd0; --keep: #58b58c; --shade: #1c232b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 0 auto;
  max-width: 62rem; padding: 2rem 1rem 4rem }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem }
p { margin: .4rem 0 } .soft { color: var(--soft) }
.flow { display: flex; height: 1.6rem; border-radius: 4px; overflow: hidden; margin: 1rem 0 .3rem; background: var(--line) }
.flow i { display: block } .flow .kept { background: var(--keep) } .flow .gone { background: var(--bar); opacity: .75 }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600; color: var(--soft); font-size: .85rem }
td, th { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.bar { width: 9rem } .bar i { display: block; height: .65rem; margin-top: .45rem; background: var(--bar); border-radius: 2px; min-width: 1px }
code { font: .9em ui-monospace, monospace }
@media (max-width: 45rem) { .bar, th:empty, td.soft { display: none } td code { overflow-wrap: anywhere } }
details { border-bottom: 1px solid var(--line); padding: .35rem 0 } summary { cursor: pointer }
.sample { margin: .7rem 0 .9rem; padding: .6rem .8rem; background: var(--shade); border-radius: 4px }
.sample p { overflow-wrap: anywhere; margin: 0 0 .3rem }
pre { font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 0; max-height: 16rem; overflow: auto }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem } @media (max-width: 45rem) { .two { grid-template-columns: 1fr } }
.warn { border-left: 3px solid #c9822b; padding-left: .8rem }
</style></head><body>
)";

double number(const Json& json) { return json.get<double>(); }
std::string percent(double part, double whole) {
  if (whole <= 0) return "0 %";
  const double share = 100 * part / whole;
  return share > 0 && share < 0.1 ? "&lt; 0.1 %" : fmt::format("{:.1f} %", share);
}
std::string text(const Json& json) { return html_escape(json.get<std::string>()); }

struct Row {
  std::string reason;
  double documents, bytes;
};

void table(std::string& out, const std::vector<Row>& rows, double all_documents, std::string_view first,
           bool meanings) {
  out += fmt::format(
      "<table><tr><th>{}</th>{}<th class=n>documents</th><th class=n>share</th><th "
      "class=n>text</th><th></th></tr>\n",
      first, meanings ? "<th></th>" : "");
  double most = 1;
  for (const Row& row : rows) most = std::max(most, row.documents);
  for (const Row& row : rows)
    out += fmt::format(
        "<tr><td><code>{}</code></td>{}<td class=n>{:.0f}</td><td class=n>{}</td><td class=n>{}</td>"
        "<td class=bar><i style=\"width:{:.1f}%\"></i></td></tr>\n",
        html_escape(row.reason), meanings ? fmt::format("<td class=soft>{}</td>", meaning(row.reason)) : "",
        row.documents, percent(row.documents, all_documents), human_bytes(row.bytes),
        100 * row.documents / most);
  out += "</table>\n";
}

std::vector<Row> rows_of(const Json& tallies) {
  std::vector<Row> rows;
  for (const auto& [name, tally] : tallies.items())
    rows.push_back({name, number(tally.at("documents")), number(tally.at("bytes"))});
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.documents > b.documents; });
  return rows;
}

void sample(std::string& out, const Json& s) {
  out +=
      fmt::format("<div class=sample><p><b>{}</b> <span class=soft>part {} &middot; {}</span></p><p>{}</p>",
                  text(s.at("id")), text(s.at("part")), text(s.at("source")), text(s.at("why")));
  if (s.contains("of"))
    out += fmt::format(
        "<div class=two><div><p class=soft>dropped</p><pre>{}</pre></div><div><p class=soft>kept: "
        "{}</p><pre>{}</pre></div></div>",
        text(s.at("excerpt")), text(s.at("of")), text(s.at("of_excerpt")));
  else out += fmt::format("<pre>{}</pre>", text(s.at("excerpt")));
  out += "</div>\n";
}

}  // namespace

std::string clean_report_html(const Json& report) {
  std::string out(kHead);
  const double read = number(report.at("read").at("documents")),
               kept = number(report.at("kept").at("documents"));
  const double read_bytes = number(report.at("read").at("bytes")),
               kept_bytes = number(report.at("kept").at("bytes"));
  const Json& duplicates = report.at("duplicates");
  out += "<h1>What is left, and what went</h1>\n";
  out += fmt::format(
      "<p>Read <b>{:.0f}</b> documents, {} of text, from {} files. Kept <b>{:.0f}</b>, {}: {} of the "
      "documents, {} of the text.</p>\n",
      read, human_bytes(read_bytes), report.at("run").at("inputs").get<int64_t>(), kept,
      human_bytes(kept_bytes), percent(kept, read), percent(kept_bytes, read_bytes));
  out += fmt::format(
      "<div class=flow><i class=kept style=\"width:{0:.2f}%\" title=\"kept\"></i><i class=gone "
      "style=\"width:{1:.2f}%\" title=\"dropped\"></i></div>"
      "<p class=soft>On the left, green: the share of the text that is kept.</p>\n",
      read_bytes > 0 ? 100 * kept_bytes / read_bytes : 0,
      read_bytes > 0 ? 100 - 100 * kept_bytes / read_bytes : 0);
  if (const Json& problems = report.at("problems"); !problems.empty()) {
    out += "<h2>Damaged files</h2>\n<div class=warn>";
    for (const Json& problem : problems) out += fmt::format("<p>{}</p>", text(problem));
    out += "</div>\n";
  }
  std::vector<Row> rows = rows_of(report.at("dropped"));
  // The bytes of the two kinds of duplicates are only known together.
  const double both = std::max(number(duplicates.at("documents")), 1.0),
               duplicate_bytes = number(duplicates.at("bytes"));
  for (const char* kind : {"exact", "near"})
    if (const double n = number(duplicates.at(kind)); n > 0)
      rows.push_back({std::string("duplicate.") + kind, n, duplicate_bytes * n / both});
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.documents > b.documents; });
  out += "<h2>Dropped, by the first rule that a document broke</h2>\n";
  table(out, rows, read, "rule", true);
  if (number(duplicates.at("documents")) > 0)
    out +=
        "<p class=soft>The text of exact and near duplicates is only known together; it is divided by their "
        "number.</p>\n";
  out += fmt::format(
      "<p>Changed in documents that stayed: {} lines removed, {} documents tidied (line ends, control "
      "characters), "
      "{} put right that had been encoded twice.</p>\n",
      report.at("lines_removed").get<int64_t>(), report.at("tidied").get<int64_t>(),
      report.at("repaired").get<int64_t>());
  out +=
      "<h2>Parts of the mixture</h2>\n<table><tr><th>part</th><th class=n>read</th><th class=n>kept</th><th "
      "class=n>text read</th><th class=n>text kept</th><th class=n>share</th></tr>\n";
  for (const auto& [part, tally] : report.at("parts_read").items()) {
    double documents = 0, bytes = 0;
    if (const Json& parts = report.at("parts_kept"); parts.contains(part)) {
      documents = number(parts.at(part).at("documents"));
      bytes = number(parts.at(part).at("bytes"));
    }
    out += fmt::format(
        "<tr><td><code>{}</code></td><td class=n>{:.0f}</td><td class=n>{:.0f}</td><td class=n>{}</td><td "
        "class=n>{}</td><td class=n>{}</td></tr>\n",
        html_escape(part), number(tally.at("documents")), documents, human_bytes(number(tally.at("bytes"))),
        human_bytes(bytes), percent(bytes, number(tally.at("bytes"))));
  }
  out += "</table>\n<h2>Languages of what is kept</h2>\n";
  table(out, rows_of(report.at("languages_kept")), kept, "language", false);
  out +=
      "<p class=soft><code>code</code>: source code, by the file's name. <code>und</code>: like no language "
      "that is known.</p>\n";
  if (const Json& encodings = report.at("encodings"); !encodings.empty()) {
    out += "<h2>Converted to UTF-8</h2>\n";
    table(out, rows_of(encodings), read, "encoding", false);
  }
  if (const Json& evaluation = report.at("evaluation"); !evaluation.empty()) {
    out +=
        "<h2>Evaluation items kept out</h2>\n<table><tr><th>file</th><th class=n>items</th><th class=n>too "
        "short to look for</th><th class=n>documents dropped</th></tr>\n";
    for (const Json& file : evaluation)
      out += fmt::format(
          "<tr><td><code>{}</code></td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td></tr>\n",
          text(file.at("path")), file.at("items").get<int64_t>(), file.at("short_items").get<int64_t>(),
          file.at("documents").get<int64_t>());
    out += "</table>\n";
  }
  if (number(duplicates.at("candidates")) > 0) {
    out += fmt::format(
        "<h2>Similarity of candidates</h2>\n<p class=soft>{} pairs of documents agreed on a band of hashes "
        "and were compared "
        "exactly; from the threshold on ({}) the later one goes.</p>\n<table>",
        duplicates.at("candidates").get<int64_t>(),
        report.at("run").at("options").at("dedup").at("near").at("jaccard").dump());
    double most = 1;
    for (const Json& n : duplicates.at("similarity")) most = std::max(most, number(n));
    for (size_t i = 0; i < duplicates.at("similarity").size(); ++i)
      if (const double n = number(duplicates.at("similarity")[i]); n > 0)
        out += fmt::format(
            "<tr><td class=n>{:.2f} to {:.2f}</td><td class=n>{:.0f}</td><td class=bar "
            "style=\"width:60%\"><i style=\"width:{:.1f}%\"></i></td></tr>\n",
            double(i) / 20, double(i + 1) / 20, n, 100 * n / most);
    out += "</table>\n";
  }
  out += "<h2>Samples</h2>\n";
  for (const Row& row : rows) {
    if (!report.at("samples").contains(row.reason)) continue;
    const Json& list = report.at("samples").at(row.reason);
    out += fmt::format(
        "<details><summary><code>{}</code> <span class=soft>{} &middot; {} of {:.0f}</span></summary>\n",
        html_escape(row.reason), meaning(row.reason), list.size(), row.documents);
    for (const Json& s : list) sample(out, s);
    out += "</details>\n";
  }
  out += "<h2>Settings</h2>\n<details><summary>all of them</summary><pre>" +
         html_escape(report.at("run").at("options").dump(2)) + "</pre></details>\n</body></html>\n";
  return out;
}

}  // namespace cachalot
