// A progress line for people: a bar that redraws itself on a terminal, a line now and then in a log.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>

namespace cachalot {

struct ProgressStyle {
  bool terminal = false;            // redraw one line in place; otherwise print whole lines
  int width = 80;                   // columns of the terminal; the line is cut to fit
  bool bar = true;                  // terminal: 23 columns that draw the share
  double redraw_seconds = 0.1;      // terminal: not more often
  double line_share = 0.1;          // log: a line whenever this share of the total has been passed ...
  double line_seconds = 30;         // ... or this much time since the last line
  std::function<double()> seconds;  // a monotonic clock; empty: the system's
};

// What suits `out`: a terminal's width when it is std::cout or std::cerr on a terminal, plain lines
// otherwise.
ProgressStyle progress_style(const std::ostream& out);

// Made by cli/ and passed down: a library reports to a Progress that it is given and never makes one.
// One thread. `out` must outlive it.
//
//   train  42% [########------------]  420/1000, 1 m 03 s left, loss 3.21, 5.1K tok/s
class Progress {
 public:
  Progress(std::ostream& out, std::string title, int64_t total);  // total <= 0: unknown
  Progress(std::ostream& out, std::string title, int64_t total, ProgressStyle style);
  ~Progress();  // leaves the cursor on a line of its own, whatever happened
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Cheap when nothing is due. `left`: seconds, of a caller who knows more than done of total.
  void update(int64_t done, std::string extra = {}, std::optional<double> left = {});
  void print(std::string_view line);  // a whole line above the bar
  void finish();                      // draws the end state and the total time

 private:
  double now() const;
  std::string state() const;
  void draw();

  std::ostream& out_;
  std::string title_, extra_;
  int64_t total_, done_ = 0, shown_ = 0;
  std::optional<double> left_;
  ProgressStyle style_;
  double start_, last_;
  bool drawn_ = false, finished_ = false;  // drawn_: an unfinished line is on the terminal
};

}  // namespace cachalot
