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
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:12px}
.bar{height:6px;background:var(--line);border-radius:3px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--accent)}
table{border-collapse:collapse;background:var(--card);border-radius:8px}
td,th{padding:5px 12px;text-align:left;vertical-align:top}
th{color:var(--faint);font-weight:500}td.n{text-align:right;font-variant-numeric:tabular-nums}
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

std::string losses(const RunLog& log) {
  std::vector<ChartSeries> s{series(log, "loss", "training")};
  for (const std::string& name : log.names("mtp_loss."))
    if (const auto depth = list_index(name))
      s.push_back(series(log, name, fmt::format("MTP depth {}", *depth + 1)));
  if (log.has("held_out.loss")) s.push_back(series(log, "held_out.loss", "held out", true));
  std::string body = line_chart({.title = "Loss", .x_label = "step", .y_label = "nats a token"}, s);
  std::vector<ChartSeries> bits;
  if (log.has("held_out.bits_per_byte"))
    bits.push_back(series(log, "held_out.bits_per_byte", "held out", true));
  constexpr size_t kPrefix = sizeof("held_out.sets.") - 1;
  const auto sets = [&](const std::string& ending) {  // columns of the sets, and what they are called
    std::vector<std::pair<std::string, std::string>> found;
    for (const std::string& name : log.names("held_out.sets."))
      if (name.ends_with(ending))
        found.emplace_back(name, name.substr(kPrefix, name.size() - kPrefix - ending.size()));
    return found;
  };
  if (log.has("held_out.average_bits_per_byte"))
    bits.push_back(series(log, "held_out.average_bits_per_byte", "with the average of the weights", true));
  for (const auto& [column, name] : sets(".bits_per_byte")) bits.push_back(series(log, column, name, true));
  body += line_chart({.title = "Held-out text", .x_label = "step", .y_label = "bits per byte"}, bits);
  std::vector<ChartSeries> accepted;
  if (log.has("held_out.mtp.0.acceptance"))
    accepted.push_back(series(log, "held_out.mtp.0.acceptance", "held out", true));
  for (const auto& [column, name] : sets(".mtp.0.acceptance"))
    accepted.push_back(series(log, column, name, true));
  body += line_chart({.title = "Drafts of the first MTP depth that are accepted",
                      .x_label = "step",
                      .y_label = "share",
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

std::string speed(const RunLog& log) {
  std::string body =
      line_chart({.title = "Throughput", .x_label = "step", .y_label = "tokens/s", .from_zero = true},
                 {series(log, "tokens_per_second", "tokens/s")});
  if (log.has("mfu"))
    body += line_chart({.title = "Share of the device's products (MFU)",
                        .x_label = "step",
                        .y_label = "",
                        .from_zero = true},
                       {series(log, "mfu", "MFU")});
  if (log.has("data_seconds"))
    body += line_chart(
        {.title = "Waiting for data", .x_label = "step", .y_label = "seconds a step", .from_zero = true},
        {series(log, "data_seconds", "data")});
  if (log.has("checkpoint_stall_seconds"))
    body += line_chart(
        {.title = "Waiting for checkpoints", .x_label = "step", .y_label = "seconds", .from_zero = true},
        {series(log, "checkpoint_stall_seconds", "checkpoints", true)});
  if (log.has("energy_joules"))
    body += line_chart({.title = "Energy", .x_label = "step", .y_label = "joules so far", .from_zero = true},
                       {series(log, "energy_joules", "energy")});
  return grid(body);
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

std::string balance(const RunLog& log) {
  const std::vector<std::string> layers = log.names("max_vio.");
  std::vector<ChartSeries> s;
  for (const size_t i : spread(layers.size()))
    if (const auto layer = list_index(layers[i]))
      s.push_back(series(log, layers[i], fmt::format("layer {}", layer_number(log, *layer))));
  std::string body = line_chart({.title = "MaxVio: the fullest expert's load over the mean, less 1",
                                 .x_label = "step",
                                 .y_label = "",
                                 .from_zero = true},
                                s);
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
        line.name = fmt::format("layer {}, {}", layer_number(log, l), which ? "largest" : "least");
        line.x.push_back(e["step"].get<double>());
        line.y.push_back(which ? *high : *low);
      }
    }
  }
  std::vector<ChartSeries> some;
  for (const size_t i : spread(bias.size() / 2)) some.push_back(bias[2 * i]), some.push_back(bias[2 * i + 1]);
  body += line_chart({.title = "Router biases", .x_label = "step", .y_label = "least and largest of a layer"},
                     some);
  if (log.has("experts_per_group"))
    body += line_chart({.title = "Experts of a token in each group it visits",
                        .x_label = "step",
                        .y_label = "",
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
  number("loss", "loss, last step", [](double v) { return fmt::format("{:.4f}", v); });
  number("held_out.bits_per_byte", "bits per byte, held out",
         [](double v) { return fmt::format("{:.4f}", v); });
  const RunLog::Column rate = log.column("tokens_per_second");
  if (!rate.value.empty()) {
    std::vector<double> sorted = rate.value;
    std::nth_element(sorted.begin(), sorted.begin() + ptrdiff_t(sorted.size() / 2), sorted.end());
    tiles += tile(human_count(sorted[sorted.size() / 2]), "tokens/s, median");
  }
  number("mfu", "MFU, last step", [](double v) { return fmt::format("{:.1f} %", 100 * v); });
  number("seconds", "running", [](double v) { return human_seconds(v); });
  number("energy_joules", "energy", [](double v) {
    return v < 3.6e6 ? fmt::format("{:.1f} Wh", v / 3600) : fmt::format("{:.2f} kWh", v / 3.6e6);
  });
  number("cost", "cost", [](double v) { return fmt::format("{:.2f}", v); });
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
  std::string state = fmt::format("{}; last written {}", date(in.now), date(in.written));
  if (in.total_steps && !log.step.empty() && log.step.back() >= double(in.total_steps)) state += "; finished";
  if (log.unreadable) state += fmt::format("; {} lines of metrics.jsonl could not be read", log.unreadable);
  std::string html = fmt::format(
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\"><title>{0}</title><style>{1}{2}</style></"
      "head><body><main>"
      "<h1>{0}</h1><p>{3}</p>",
      html_escape(in.title), kPageStyle, kChartStyle, html_escape(state));
  html += summary(in);
  html += section("Learning", "", losses(log));
  html += section("Optimiser", "", optimisation(log));
  html += section("Speed", "", speed(log));
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
