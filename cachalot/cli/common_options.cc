#include "cli/common_options.h"

#include <fmt/format.h>

#include <filesystem>
#include <limits>

namespace cachalot::cli {

CLI::Validator in_range(double low, double high) {
  const std::string bounds = high < std::numeric_limits<double>::infinity()
                                 ? fmt::format("from {} to {}", low, high)
                                 : fmt::format("{} or more", low);
  return CLI::Validator(
      [=](std::string& text) {
        double x = 0;
        const bool right = CLI::detail::lexical_cast(text, x) && x >= low && x <= high;
        return right ? std::string() : fmt::format("{} is given; it must be {}", text, bounds);
      },
      bounds);
}

CLI::Validator at_least(double low) { return in_range(low, std::numeric_limits<double>::infinity()); }

CLI::Option* add_threads(CLI::App& command, int& threads, const std::string& more) {
  return command
      .add_option("--threads", threads, "threads; 0: all that the machine or container allows" + more)
      ->check(in_range(0, 4096))
      ->capture_default_str();
}

CLI::Option* add_device(CLI::App& command, std::string& device, const std::string& more) {
  return command.add_option("--device", device, "cpu, cuda or cuda:N, or ref: slow and exact" + more)
      ->check(CLI::Validator(
          [](std::string& name) {
            return name == "plan" ? std::string("plan measures what a step would take, and computes nothing")
                                  : std::string();
          },
          ""))
      ->capture_default_str();
}

CLI::Validator file_in_a_folder() {
  return CLI::Validator(
      [](std::string& path) {
        const std::filesystem::path folder = std::filesystem::path(path).parent_path();
        std::error_code code;
        const bool there = folder.empty() || std::filesystem::is_directory(folder, code);
        return there ? std::string() : fmt::format("there is no folder {}", folder.string());
      },
      "");
}

}  // namespace cachalot::cli
