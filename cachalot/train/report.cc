#include "train/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "base/chart.h"
#include "base/error.h"
#include "base/html.h"
#include "base/text.h"

namespace cachalot {

namespace {

const char* const kPageStyle = R"(
:root{--page:#f4f5f7;--card:#fff;--ink:#1b1f24;--faint:#5b6470;--line:#e3e6ea;--accent:#0072b2}
@media(prefers-color-scheme:dark){:root{--page:#14171b;--card:#1d2127;--ink:#e8eaed;--faint:#9aa4b0;
  --line:#30363d;--accent:#56b4e9}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:20px 18px 60px}
h1{font-size:24px;margin:0}h2{font-size:17px;margin:30px 0 10px}
p{color:var(--faint);margin:4px 0 10px;max-width:85ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;margin:16px 0}
.tile{background:var(--card);border-radius:8px;padding:9px 12px}
.tile b{display:block;font-size:19px}.tile span{color:var(--faint);font-size:12px}
.grid2{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr));gap:12px}
.bar{height:6px;background:var(--line);border-radius:3px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--accent)}
table{border-collapse:collapse;background:var(--card);border-radius:8px}
@media(max-width:600px){table{display:block;overflow-x:auto;width:fit-content;max-width:100%}}
td,th{padding:5px 12px;text-align:left;vertical-align:top}
@media(max-width:600px){td,th{padding:5px 7px}}
th{color:var(--faint);font-weight:500}th.n{text-align:right}td.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:var(--card);border-radius:8px;padding:10px 12px;overflow:auto;
  white-space:pre-wrap;margin:6px 0}
pre em{color:var(--faint);font-style:normal}
details summary{cursor:pointer;color:var(--accent);margin:8px 0}
)";

std::string section(const std::string& title, const std::string& text, const std::string& body) {
  if (body.empty()) return "";
  return fmt::format("<section><h2>{}</h2>{}{}</section>\n", html_escape(title),
                     text.empty() ? "" : "<p>" + html_escape(text) + "</p>", body);
}
std::string grid(const std::string& charts) {
  return charts.empty() ? "" : "<div class=\"grid2\">" + charts + "</div>";
}
std::string tile(const std::string& value, const std::string& what) {
  return fmt::format("<div class=\"tile\"><b>{}</b><span>{}</span></div>", html_escape(value),
                     html_escape(what));
}

ChartSeries series(const RunLog& log, const std::string& column, const std::string& name,
                   bool marks = false) {
  RunLog::Column c = log.column(column);
  return {.name = name, .x = std::move(c.step), .y = std::move(c.value), .marks = marks};
}
// Of "max_vio.3" 3; nothing where a key of the file itself ends otherwise.
std::optional<size_t> list_index(const std::string& path) {
  const char* const begin = path.data() + path.rfind('.') + 1;
  const char* const end = path.data() + path.size();
  size_t index = 0;
  const auto [stop, error] = std::from_chars(begin, end, index);
  return error == std::errc() && stop == end ? std::optional(index) : std::nullopt;
}

// The sets of held-out text, by the names that their columns begin with: all of it first.
std::vector<std::pair<std::string, std::string>> held_out_sets(const RunLog& log) {
  std::vector<std::pair<std::string, std::string>> sets{{"held_out", "all"}};
  const std::string before = "held_out.sets.", after = ".bits_per_byte";
  for (const std::string& name : log.names(before))
    if (name.ends_with(after) && name.size() > before.size() + after.size()) {
      const std::string set = name.substr(0, name.size() - after.size());
      sets.emplace_back(set, set.substr(before.size()));
    }
  return sets;
}

// What the newest evaluation says of each set.
std::string held_out(const RunLog& log) {
  const RunLog::Column scores = log.column("held_out.bits_per_byte");
  if (scores.step.empty()) return "";
  struct Shown {
    const char *column, *head, *format;
    double factor;
  };
  std::vector<Shown> shown;
  for (const Shown& s :
       {Shown{".bits_per_byte", "bits per byte", "{:.4f}", 1},
        {".average_bits_per_byte", "bits per byte with the average of the weights", "{:.4f}", 1},
        {".loss", "nats a token", "{:.4f}", 1},
        {".mtp.0.acceptance", "drafts accepted, MTP depth 1", "{:.1f} %", 100}})
    if (log.has(std::string("held_out") + s.column)) shown.push_back(s);
  std::string rows = fmt::format("<tr><th>step {:.0f}</th>", scores.step.back());
  for (const Shown& s : shown) rows += fmt::format("<th class=\"n\">{}</th>", s.head);
  rows += "</tr>";
  for (const auto& [set, name] : held_out_sets(log)) {
    rows += fmt::format("<tr><td>{}</td>", html_escape(name));
    for (const Shown& s : shown) {
      const double v = log.last(set + s.column);
      rows += fmt::format("<td class=\"n\">{}</td>",
                          std::isfinite(v) ? fmt::format(fmt::runtime(s.format), s.factor * v) : "");
    }
    rows += "</tr>";
  }
  return "<table>" + rows + "</table>";
}

std::string losses(const RunLog& log) {
  std::vector<ChartSeries> s{series(log, "loss", "training")};
  for (const std::string& name : log.names("mtp_loss."))
    if (const auto depth = list_index(name))
      s.push_back(series(log, name, fmt::format("MTP depth {}", *depth + 1)));
  if (log.has("held_out.loss")) s.push_back(series(log, "held_out.loss", "held out", true));
  std::string body = line_chart({.title = "Loss", .x_label = "step", .y_label = "nats a token"}, s);
  std::vector<ChartSeries> bits, accepted;  // a set has one colour in both
  int colour = 0;
  for (const auto& [set, name] : held_out_sets(log)) {
    bits.push_back(series(log, set + ".bits_per_byte", name, true));
    accepted.push_back(series(log, set + ".mtp.0.acceptance", name, true));
    for (double& v : accepted.back().y) v *= 100;
    bits.back().colour = accepted.back().colour = colour++;
  }
  if (log.has("held_out.average_bits_per_byte"))
    bits.push_back(
        series(log, "held_out.average_bits_per_byte", "all, with the average of the weights", true));
  body += line_chart({.title = "Held-out text", .x_label = "step", .y_label = "bits per byte"}, bits);
  if (log.has("held_out.mtp.0.acceptance"))
    body += line_chart({.title = "Accepted drafts of the first MTP depth",
                        .x_label = "step",
                        .y_label = "%",
                        .from_zero = true},
                       accepted);
  return grid(body);
}

std::string optimisation(const RunLog& log) {
  std::string body =
      line_chart({.title = "Learning rate", .x_label = "step", .y_label = "", .from_zero = true},
                 {series(log, "lr", "lr")});
  body += line_chart({.title = "Norm of the gradient, before clipping",
                      .x_label = "step",
                      .y_label = "",
                      .logarithmic = true},
                     {series(log, "grad_norm", "norm")});
  if (const auto batch = log.column("batch");
      !batch.value.empty() && batch.value.front() != batch.value.back())
    body += line_chart({.title = "Batch", .x_label = "step", .y_label = "sequences", .from_zero = true},
                       {series(log, "batch", "batch")});
  return grid(body);
}

// What the steps waited for, in shares of the time that passed.
struct Waits {
  std::vector<ChartSeries> series;      // in per cent of a step, checkpoints of the time since the one before
  double total = 0;                     // seconds
  double checkpoints = 0, longest = 0;  // of these, for checkpoints; for one of them
  int64_t saved = 0;                    // checkpoints
};
Waits waits(const RunLog& log) {
  Waits w;
  const auto values = [&](const char* name) {
    const auto found = log.values.find(name);
    return found == log.values.end() ? std::vector<double>(log.step.size(), std::nan("")) : found->second;
  };
  const std::vector<double> rate = values("tokens_per_second"), age = values("seconds");
  for (const auto& [column, name] :
       {std::pair{"data_seconds", "data"}, {"average_wait_seconds", "average of the weights"}}) {
    if (!log.has(column)) continue;
    const std::vector<double> waited = values(column);
    ChartSeries s{.name = name, .x = {}, .y = {}};
    for (size_t i = 0; i < log.step.size(); ++i) {
      if (!std::isfinite(waited[i])) continue;
      w.total += waited[i];
      if (i == 0) continue;  // how long it took is not known: the log may begin later than the run
      const double seconds = (log.tokens[i] - log.tokens[i - 1]) / rate[i];
      s.x.push_back(log.step[i]);
      s.y.push_back(100 * waited[i] / seconds);
    }
    w.series.push_back(std::move(s));
  }
  ChartSeries saves{.name = "checkpoints", .x = {}, .y = {}, .colour = 2, .marks = true};
  double before = 0;
  const std::vector<double> stalls = values("checkpoint_stall_seconds"),
                            last = values("checkpoint_stall_after_seconds");
  for (size_t i = 0; i < log.step.size(); ++i)
    for (const double stall : {stalls[i], last[i]}) {
      if (!std::isfinite(stall)) continue;
      if (age[i] > before) {
        saves.x.push_back(log.step[i]);
        saves.y.push_back(100 * stall / (age[i] - before));
      }
      before = age[i];
      w.total += stall, w.checkpoints += stall, ++w.saved;
      w.longest = std::max(w.longest, stall);
    }
  if (w.saved) w.series.push_back(std::move(saves));
  return w;
}

// "0.02 %"
std::string percent(double share) { return fmt::format("{:.2g} %", share > 0 ? 100 * share : 0); }

// "35 ms", "4 m 07 s"
std::string duration(double seconds) {
  return seconds < 1 ? fmt::format("{:.0f} ms", 1e3 * seconds) : human_seconds(seconds);
}

// What a bill counts in.
struct Energy {
  const char* name;
  double joules;
};
Energy energy_unit(double joules) {
  if (joules < 3.6e6) return {"Wh", 3600};
  return joules < 3.6e9 ? Energy{"kWh", 3.6e6} : Energy{"MWh", 3.6e9};
}

std::string speed(const RunLog& log) {
  std::string body =
      line_chart({.title = "Throughput", .x_label = "step", .y_label = "tokens/s", .from_zero = true},
                 {series(log, "tokens_per_second", "tokens/s")});
  ChartSeries mfu = series(log, "mfu", "MFU");
  for (double& v : mfu.y) v *= 100;
  body += line_chart(
      {.title = "MFU", .x_label = "step", .y_label = "% of the device's bf16 products", .from_zero = true},
      {mfu});
  body += line_chart({.title = "Waiting", .x_label = "step", .y_label = "% of the time", .from_zero = true},
                     waits(log).series);
  if (log.has("energy_joules")) {
    ChartSeries energy = series(log, "energy_joules", "energy");
    const Energy unit = energy_unit(log.last("energy_joules"));
    for (double& v : energy.y) v /= unit.joules;
    body += line_chart({.title = "Energy",
                        .x_label = "step",
                        .y_label = std::string(unit.name) + " so far",
                        .from_zero = true},
                       {energy});
  }
  return grid(body);
}

// What MFU is a share of, and what training waited for checkpoints.
std::string about_speed(const ReportInput& in) {
  std::string text;
  try {
    const Json machine = in.machine_json.empty() ? Json() : parse_json(in.machine_json, "machine.json");
    if (machine.is_object() && machine.contains("measured") && machine["measured"].is_string())
      text = machine["measured"].get<std::string>() + ". ";
  } catch (const Error&) {  // shown below as it is
  }
  const Waits w = waits(in.log);
  if (const double age = in.log.last("seconds"); w.saved && age > 0)
    text += fmt::format("Training waited {} for {} checkpoint{}, {} of the time; {} at most.",
                        duration(w.checkpoints), w.saved, w.saved > 1 ? "s" : "",
                        percent(w.checkpoints / age), duration(w.longest));
  return text;
}

// Loads relative to their mean: 1 is balanced.
std::vector<double> relative(const Json& counts) {
  std::vector<double> load;
  for (const Json& n : counts) load.push_back(n.is_number() ? n.get<double>() : 0);
  const double mean =
      std::accumulate(load.begin(), load.end(), 0.0) / double(std::max<size_t>(1, load.size()));
  for (double& v : load) v = mean > 0 ? v / mean : std::nan("");
  return load;
}

bool is_event(const Json& e, const char* name) { return e.contains("event") && e["event"] == name; }

// What the page shows of a list of `n`: all, or 8 spread evenly.
std::vector<size_t> spread(size_t n) {
  std::vector<size_t> some;
  const size_t shown = std::min<size_t>(n, 8);
  for (size_t i = 0; i < shown; ++i) some.push_back(shown == n ? i : i * (n - 1) / (shown - 1));
  return some;
}

// The number of the i-th layer with experts.
int64_t layer_number(const RunLog& log, size_t i) {
  for (const Json& e : log.events)
    if (e.contains("layers") && e["layers"].is_array() && i < e["layers"].size() &&
        e["layers"][i].is_number())
      return e["layers"][i].get<int64_t>();
  return int64_t(i);
}

// The columns of a list with a number a layer.
std::vector<ChartSeries> by_layer(const RunLog& log, const std::string& columns) {
  const std::vector<std::string> layers = log.names(columns);
  std::vector<ChartSeries> s;
  for (const size_t i : spread(layers.size()))
    if (const auto layer = list_index(layers[i]))
      s.push_back(series(log, layers[i], fmt::format("layer {}", layer_number(log, *layer))));
  return s;
}

std::string balance(const RunLog& log) {
  std::string body = line_chart({.title = "MaxVio",
                                 .x_label = "step",
                                 .y_label = "the fullest expert's load over the mean, less 1",
                                 .from_zero = true},
                                by_layer(log, "max_vio."));
  // The router's biases: least and largest of each layer.
  std::vector<ChartSeries> bias;
  for (const Json& e : log.events) {
    if (!is_event(e, "expert_load") || !e.contains("bias")) continue;
    const Json& all = e["bias"];
    bias.resize(std::max(bias.size(), 2 * all.size()));
    for (size_t l = 0; l < all.size(); ++l) {
      std::vector<double> b;
      for (const Json& v : all[l])
        if (v.is_number()) b.push_back(v.get<double>());
      if (b.empty()) continue;
      const auto [low, high] = std::minmax_element(b.begin(), b.end());
      for (const size_t which : {size_t(0), size_t(1)}) {
        ChartSeries& line = bias[2 * l + which];
        line.name = fmt::format("layer {}", layer_number(log, l));
        line.x.push_back(e["step"].get<double>());
        line.y.push_back(which ? *high : *low);
      }
    }
  }
  std::vector<ChartSeries> some;
  int colour = 0;
  for (const size_t i : spread(bias.size() / 2)) {
    for (const size_t which : {size_t(0), size_t(1)}) {
      some.push_back(bias[2 * i + which]);
      some.back().colour = colour;
    }
    ++colour;
  }
  body += line_chart(
      {.title = "Router biases", .x_label = "step", .y_label = "least and largest of each layer"}, some);
  body += line_chart(
      {.title = "Groups that a token reaches", .x_label = "step", .y_label = "mean", .from_zero = true},
      by_layer(log, "groups_per_token."));
  body += line_chart({.title = "Experts of a token in a group that it reaches",
                      .x_label = "step",
                      .y_label = "mean of all layers",
                      .from_zero = true},
                     {series(log, "experts_per_group", "experts per group")});
  return grid(body);
}

std::string load_by_step(const RunLog& log) {
  std::vector<const Json*> lines;
  for (const Json& e : log.events)
    if (is_event(e, "expert_load") && e.contains("counts") && e["counts"].is_array()) lines.push_back(&e);
  if (lines.empty()) return "";
  const size_t layers = (*lines[0])["counts"].size();
  std::string body;
  for (size_t l = 0; l < layers; ++l) {
    HeatMap map{.title = fmt::format("Layer {}", layer_number(log, l)),
                .x_label = "step",
                .y_label = "experts",
                .row_names = {},
                .first_column = fmt::format("{}", (*lines.front())["step"].get<int64_t>()),
                .last_column = fmt::format("{}", (*lines.back())["step"].get<int64_t>()),
                .values = {}};
    std::vector<std::vector<double>> columns;
    for (const Json* e : lines)
      if ((*e)["counts"].size() > l) columns.push_back(relative((*e)["counts"][l]));
    const size_t experts = columns.empty() ? 0 : columns[0].size(),
                 shown = std::min<size_t>(columns.size(), 240);
    for (size_t x = 0; x < experts; ++x) {
      std::vector<double> row;
      for (size_t c = 0; c < shown; ++c) {
        const auto& column = columns[c * columns.size() / shown];
        row.push_back(x < column.size() ? column[x] : std::nan(""));
      }
      map.values.push_back(std::move(row));
    }
    body += heat_map(map);
  }
  return grid(body);
}

std::string load_by_part(const RunLog& log) {
  if (log.expert_loads.empty()) return "";
  const Json& parts = log.expert_loads.back()["sets"];
  if (!parts.is_object() || parts.empty()) return "";
  const size_t layers = parts.begin()->size();
  std::string body;
  for (size_t l = 0; l < layers; ++l) {
    HeatMap map{.title = fmt::format("Layer {}, step {:.0f}", layer_number(log, l),
                                     log.expert_loads.back()["step"].get<double>()),
                .x_label = "expert",
                .y_label = "part",
                .row_names = {},
                .first_column = "0",
                .last_column = "",
                .values = {}};
    size_t experts = 0;
    for (const auto& [name, counts] : parts.items()) {
      if (counts.size() <= l) continue;
      std::vector<double> load = relative(counts[l]);
      if (experts == 0) experts = load.size();
      load.resize(experts, std::nan(""));
      map.row_names.push_back(name);
      map.values.push_back(std::move(load));
    }
    map.last_column = fmt::format("{}", experts ? experts - 1 : 0);
    body += heat_map(map);
  }
  return grid(body);
}

std::string events(const RunLog& log) {
  std::string rows;
  for (const Json& e : log.events) {
    if (is_event(e, "expert_load")) continue;
    std::string rest;
    for (const auto& [key, value] : e.items())
      if (key != "event" && key != "step")
        rest += fmt::format("{}{} {}", rest.empty() ? "" : ", ", key,
                            value.is_string() ? value.get<std::string>() : value.dump());
    rows +=
        fmt::format("<tr><td class=\"n\">{}</td><td>{}</td><td>{}</td></tr>",
                    e.contains("step") ? html_escape(e["step"].dump()) : "",
                    html_escape(e["event"].is_string() ? e["event"].get<std::string>() : e["event"].dump()),
                    html_escape(rest));
  }
  return rows.empty() ? "" : "<table><tr><th>step</th><th>event</th><th></th></tr>" + rows + "</table>";
}

std::string samples(const ReportInput& in) {
  std::string body;
  for (const auto& [prompt, text] : in.samples)
    body += fmt::format("<pre><em>{}</em>{}</pre>", html_escape(prompt), html_escape(text));
  return body;
}

// "2026-11-22 10:51 UTC"
std::string date(double seconds) {
  const std::time_t t = std::time_t(seconds);
  std::tm utc{};
  gmtime_r(&t, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &utc);
  return text;
}

// The last values of a column: means of them are steadier than one.
std::vector<double> newest(const RunLog& log, const std::string& column) {
  constexpr size_t kSteps = 20;
  std::vector<double> v = log.column(column).value;
  if (v.size() > kSteps) v.erase(v.begin(), v.end() - kSteps);
  return v;
}

std::string summary(const ReportInput& in) {
  const RunLog& log = in.log;
  const double step = log.step.empty() ? 0 : log.step.back(),
               share = in.total_steps ? step / double(in.total_steps) : 0;
  std::string tiles;
  tiles +=
      tile(in.total_steps ? fmt::format("{:.0f} of {}", step, in.total_steps) : fmt::format("{:.0f}", step),
           "steps");
  const auto number = [&](const char* column, const char* what, const auto& text) {
    if (const double v = log.last(column); std::isfinite(v)) tiles += tile(text(v), what);
  };
  number("tokens", "tokens trained", [](double v) { return human_count(v); });
  if (const std::vector<double> last = newest(log, "loss"); !last.empty())
    tiles += tile(fmt::format("{:.4f}", std::accumulate(last.begin(), last.end(), 0.0) / double(last.size())),
                  last.size() > 1 ? fmt::format("loss, last {} steps", last.size()) : "loss");
  number("held_out.bits_per_byte", "bits per byte, held out",
         [](double v) { return fmt::format("{:.4f}", v); });
  number("held_out.mtp.0.acceptance", "MTP drafts accepted",
         [](double v) { return fmt::format("{:.1f} %", 100 * v); });
  const auto median = [&](const char* column, const char* what, const auto& text) {
    std::vector<double> sorted = log.column(column).value;
    if (sorted.empty()) return;
    std::nth_element(sorted.begin(), sorted.begin() + ptrdiff_t(sorted.size() / 2), sorted.end());
    tiles += tile(text(sorted[sorted.size() / 2]), what);
  };
  median("tokens_per_second", "tokens/s, median", [](double v) { return human_count(v); });
  median("mfu", "MFU, median", [](double v) { return fmt::format("{:.1f} %", 100 * v); });
  if (const double age = log.last("seconds"); age > 0 && log.has("data_seconds"))
    tiles += tile(percent(waits(log).total / age), "of the time waiting");
  number("seconds", "running", [](double v) { return human_seconds(v); });
  number("energy_joules", "energy", [](double v) {
    const Energy unit = energy_unit(v);
    return fmt::format("{:.4g} {}", v / unit.joules, unit.name);
  });
  number("cost", "cost", [](double v) { return fmt::format(fmt::runtime(v < 1 ? "{:.2g}" : "{:.2f}"), v); });
  if (share > 0 && share < 1 && std::isfinite(log.last("seconds")))
    tiles += tile(human_seconds(log.last("seconds") * (1 - share) / share), "left, at this speed");
  std::string out = "<div class=\"tiles\">" + tiles + "</div>";
  if (in.total_steps)
    out +=
        fmt::format("<div class=\"bar\"><i style=\"width:{:.1f}%\"></i></div>", 100 * std::min(1.0, share));
  return out;
}

}  // namespace

std::string report_html(const ReportInput& in) {
  const RunLog& log = in.log;
  std::string state = fmt::format("Made {}; the run last wrote {}", date(in.now), date(in.written));
  if (in.goes_on) state += "; it goes on";
  else if (in.total_steps && !log.step.empty() && log.step.back() >= double(in.total_steps))
    state += "; finished";
  else state += "; no process on this machine trains in it";
  if (log.unreadable) state += fmt::format("; {} lines of metrics.jsonl could not be read", log.unreadable);
  std::string html = fmt::format(
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\"><title>{0}</title><style>{1}{2}</style></"
      "head><body><main>"
      "<h1>{0}</h1><p>{3}</p>",
      html_escape(in.title), kPageStyle, kChartStyle, html_escape(state));
  html += summary(in);
  html += section("Learning", "", losses(log));
  html += section("Held-out text", "", held_out(log));
  html += section("Optimiser", "", optimisation(log));
  html += section("Speed", about_speed(in), speed(log));
  html += section("Balance of the experts", "", balance(log));
  html += section("Load of the experts by step",
                  "Tokens of one step, relative to the layer's mean: white is balanced, blue fewer, dark red "
                  "twice as many or more.",
                  load_by_step(log));
  html += section("Load of the experts by part of the corpus",
                  "Held-out text of each part; an expert that is red for one part and blue for the others "
                  "has specialised.",
                  load_by_part(log));
  html += section("Events", "", events(log));
  html += section("Samples", "By the newest checkpoint, at temperature 0.8.", samples(in));
  std::string details;
  for (const auto& [name, text] :
       {std::pair{"Machine", &in.machine_json}, {"Configuration", &in.config_json}})
    if (!text->empty())
      details +=
          fmt::format("<details><summary>{}</summary><pre>{}</pre></details>", name, html_escape(*text));
  html += section("Setting", "", details);
  return html + "</main></body></html>\n";
}

}  // namespace cachalot
