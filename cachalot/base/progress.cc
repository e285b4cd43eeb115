#include "base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "base/text.h"

namespace cachalot {

namespace {

constexpr int kBar = 20;         // cells
constexpr int kRoomForBar = 60;  // columns; on fewer the time that is left is worth more

// The first `columns` characters, or a little less, not to cut a number: one code point is taken for one
// column.
std::string_view cut(std::string_view text, int columns) {
  size_t at = 0;
  for (int n = 0; at < text.size() && n < columns; ++n) at += size_t(std::max(1, utf8_length(text, at)));
  if (at >= text.size()) return text;
  const size_t comma = text.substr(0, at + 1).rfind(',');  // between two things that are told
  return text.substr(0, comma == std::string_view::npos ? at : comma);
}

}  // namespace

ProgressStyle progress_style(const std::ostream& out) {
  const int fd = &out == &std::cout                         ? STDOUT_FILENO
                 : &out == &std::cerr || &out == &std::clog ? STDERR_FILENO
                                                            : -1;
  ProgressStyle style;
  style.terminal = fd >= 0 && ::isatty(fd);
  winsize size{};
  if (style.terminal && ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) style.width = size.ws_col;
  return style;
}

Progress::Progress(std::ostream& out, std::string title, int64_t total)
    : Progress(out, std::move(title), total, progress_style(out)) {}

Progress::Progress(std::ostream& out, std::string title, int64_t total, ProgressStyle style)
    : out_(out),
      title_(std::move(title)),
      total_(total),
      style_(std::move(style)),
      start_(now()),
      last_(start_) {}

Progress::~Progress() {
  if (!drawn_) return;
  try {
    out_ << '\n' << std::flush;
  } catch (...) {  // a stream that throws has no line to end
  }
}

double Progress::now() const {
  if (style_.seconds) return style_.seconds();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// "train  42% [########------------]  420/1000, 1 m 03 s left, loss 3.21": what is known of it.
std::string Progress::state() const {
  const double elapsed = now() - start_;
  std::string line = title_;
  if (total_ > 0) {
    const double share = std::clamp(double(done_) / double(total_), 0.0, 1.0);
    const int cells = int(share * kBar);
    line += fmt::format("{}{:3}% ", line.empty() ? "" : "  ",
                        std::clamp<int64_t>(100 * done_ / total_, 0, 100));  // 100 % only at the end
    if (style_.terminal && style_.bar && style_.width >= kRoomForBar)
      line += fmt::format("[{:#<{}}{:-<{}}] ", "", cells, "", kBar - cells);
    line += fmt::format(" {}/{}", done_, total_);
  } else {
    line += fmt::format("  {}", done_);
  }
  if (finished_) line += fmt::format(", {}", human_seconds(elapsed));
  else if (total_ > 0 && done_ > 0 && done_ < total_)
    line += fmt::format(", {} left",
                        human_seconds(left_.value_or(elapsed * double(total_ - done_) / double(done_))));
  if (!extra_.empty()) line += ", " + extra_;
  return line;
}

void Progress::draw() {
  if (style_.terminal) {
    out_ << "\r\x1b[K" << cut(state(), style_.width - 1);  // the last column would wrap on some terminals
    drawn_ = true;
  } else {
    out_ << state() << '\n';
  }
  out_ << std::flush;
  last_ = now();
  shown_ = done_;
}

void Progress::update(int64_t done, std::string extra, std::optional<double> left) {
  done_ = done;
  left_ = left;
  extra_ = std::move(extra);
  const double since = now() - last_;
  if (style_.terminal) {
    if (!drawn_ || since >= style_.redraw_seconds) draw();
    return;
  }
  const auto part = [&](int64_t n) { return int64_t(double(n) / double(total_) / style_.line_share + 1e-9); };
  if (since >= style_.line_seconds || (total_ > 0 && done_ < total_ && part(done_) > part(shown_))) draw();
}

void Progress::print(std::string_view line) {
  if (drawn_) out_ << "\r\x1b[K";
  out_ << line << '\n';
  if (drawn_) draw();
  else out_ << std::flush;
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  draw();
  if (style_.terminal) out_ << '\n' << std::flush;
  drawn_ = false;
}

}  // namespace cachalot
