#include "data/clean.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <time.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "config/fields.h"
#include "data/checksum.h"
#include "data/clean_report.h"
#include "data/clean_tally.h"
#include "data/encoding.h"
#include "data/folder_lock.h"
#include "data/jsonl.h"
#include "data/language.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

constexpr size_t kGroupBytes =
    512 << 10;  // of records that one thread takes at a time, and of a packed frame
constexpr size_t kExcerpt = 400;
constexpr size_t kMostParts = 1000;  // of the mixture: every one has its row in the report
constexpr int kVersion = 1;          // of what is staged: another one starts anew

struct Stopped {};

// Of the calling thread's work: on a shared machine the time of day would say little.
class Clock {
 public:
  double lap() {
    const double time = now();
    return time - std::exchange(last_, time);
  }

 private:
  static double now() {
    timespec time{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
  }
  double last_ = now();
};

// Where in the input a unit ends.
struct Place {
  int64_t file = 0;
  ReadPosition position;
};

struct Group {
  std::vector<std::pair<Record, int64_t>> records;  // and the number of the file
  std::vector<std::string> problems;                // damaged files between them
  size_t bytes = 0;
  bool ends_unit = false;
  Place after;
};

// Cuts the input into groups, ahead of those who work on them.
class GroupReader {
 public:
  GroupReader(const std::vector<InputFile>& files, const ReadOptions& options, Place from, int64_t unit_bytes,
              bool skip_corrupt, size_t ahead)
      : files_(files),
        options_(options),
        place_(from),
        unit_bytes_(unit_bytes),
        skip_corrupt_(skip_corrupt),
        ahead_(ahead) {
    for (int64_t i = 0; i < from.file; ++i) consumed_ += file_bytes({files[size_t(i)]});
    thread_ = std::thread([this] { run(); });
  }
  ~GroupReader() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  // Up to `most` groups of one unit; empty at the end. What reading threw, after the groups before it.
  std::vector<Group> next(size_t most) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return done_ || queue_.size() >= most || unit_ends_in_queue(); });
    std::vector<Group> groups;
    while (!queue_.empty() && groups.size() < most) {
      groups.push_back(std::move(queue_.front()));
      queue_.pop_front();
      if (groups.back().ends_unit) break;
    }
    if (groups.empty() && error_) std::rethrow_exception(error_);
    lock.unlock();
    wake_.notify_all();
    return groups;
  }
  int64_t consumed() const { return consumed_; }

 private:
  bool unit_ends_in_queue() const {
    return std::any_of(queue_.begin(), queue_.end(), [](const Group& g) { return g.ends_unit; });
  }

  void push(Group group) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stop_ || queue_.size() < ahead_; });
    if (stop_) throw Stopped();
    queue_.push_back(std::move(group));
    lock.unlock();
    wake_.notify_all();
  }

  void run() {
    try {
      read_all();
    } catch (const Stopped&) {
    } catch (...) {
      error_ = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    done_ = true;
    wake_.notify_all();
  }

  void read_all() {
    Group group;
    int64_t unit = 0, finished = consumed_;
    const auto give = [&](bool ends_unit) {
      group.ends_unit = ends_unit;
      group.after = place_;
      push(std::move(group));
      group = {};
      if (ends_unit) unit = 0;
    };
    for (; place_.file < int64_t(files_.size()); ++place_.file, place_.position = {}) {
      const InputFile& file = files_[size_t(place_.file)];
      try {
        RecordReader reader(file, options_, place_.position);
        for (Record record; reader.next(record);) {
          group.bytes += record.bytes.size();
          group.records.emplace_back(std::move(record), place_.file);
          record = {};
          place_.position = reader.position();
          consumed_ = finished + reader.consumed();
          if (int64_t(group.bytes) < std::min<int64_t>(kGroupBytes, unit_bytes_) &&
              group.records.size() < 4096)
            continue;
          unit += int64_t(group.bytes);
          give(unit >= unit_bytes_);
        }
      } catch (const Error& e) {
        if (!skip_corrupt_)
          throw Error(e.what()).hint(e.hint().empty() ? kGoOn : fmt::format("{}; {}", e.hint(), kGoOn));
        group.problems.push_back(utf8_lossy(e.what()));
      }
      finished += file_bytes({file});
      consumed_ = finished;
    }
    if (!group.records.empty() || !group.problems.empty()) give(true);
  }

  static constexpr const char* kGoOn = "--skip-corrupt goes on without the rest of such files";
  const std::vector<InputFile>& files_;
  const ReadOptions& options_;
  Place place_;
  int64_t unit_bytes_;
  bool skip_corrupt_;
  size_t ahead_;
  std::atomic<int64_t> consumed_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Group> queue_;
  bool stop_ = false, done_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

// What a group became.
struct Staged {
  std::string frame;  // packed lines
  int64_t documents = 0;
  Fingerprints fingerprints;
  CleanTally tally;
};

// One thread's tools.
struct Worker {
  Worker(const CleanOptions& options) : filters(options.filters), hasher(options.dedup.near) {}
  Filters filters;
  MinHasher hasher;
  Words words;
  std::vector<uint64_t> shingles, keys;
  std::map<std::string, double> seconds;
};

class Workers {
 public:
  explicit Workers(const CleanOptions& options) : options_(options) {}
  template <class Body> void use(const Body& body) {
    std::unique_ptr<Worker> worker;
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        worker = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (!worker) worker = std::make_unique<Worker>(options_);
    body(*worker);
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(worker));
  }
  std::map<std::string, double> seconds() const {
    std::map<std::string, double> sum;
    for (const auto& worker : free_)
      for (const auto& [stage, seconds] : worker->seconds) sum[stage] += seconds;
    return sum;
  }

 private:
  const CleanOptions& options_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> free_;
};

ReadOptions read_options(const CleanOptions& options) {
  ReadOptions read{.text_field = options.text_field,
                   .id_field = options.id_field,
                   .encoding = options.encoding,
                   .max_bytes = options.max_document};
  if (options.format == "text") read.format = DocumentFormat::text;
  if (options.format == "lines") read.format = DocumentFormat::lines;
  if (options.format == "jsonl") read.format = DocumentFormat::jsonl;
  return read;
}

class Cleaner {
 public:
  Cleaner(const CleanRequest& request, const CleanOptions& options, const CleanProgress& progress)
      : request_(request),
        options_(options),
        progress_(progress),
        read_(read_options(options)),
        packed_(options.zstd_level > 0 && can_use_zstd()),
        work_(request.out + "/.work"),
        pool_(request.threads),
        workers_(options) {}

  CleanResult run() {
    CleanResult result;
    std::error_code code;
    fs::create_directories(request_.out, code);
    if (code) throw Error(fmt::format("cannot create {}: {}", request_.out, code.message()));
    const FolderLock lock(request_.out);  // before anything of it is removed
    if (open_folder(result)) return result;
    evaluation_.emplace(request_.evaluation, options_.decontaminate);
    compare_configuration();
    remove_temporaries(work_);
    remove_temporaries(request_.out);
    try {
      filter();
      compare();
      write();
      finish(result);
    } catch (const Stopped&) {
    }
    result.seconds = workers_.seconds();
    for (const auto& [stage, seconds] : seconds_) result.seconds[stage] += seconds;
    return result;
  }

 private:
  // True when there is nothing to do.
  bool open_folder(CleanResult& result) {
    const std::string& out = request_.out;
    if (request_.overwrite) {
      // Only what a run leaves there, never a folder that was given by mistake.
      if (fs::exists(out) && !fs::exists(work_) && !fs::exists(out + "/report.json") && !fs::is_empty(out))
        throw Error(fmt::format("{} holds something else than an earlier run", out))
            .hint("choose another --out");
      fs::remove(out + "/report.json");
      fs::remove_all(work_);
      if (fs::exists(out))
        for (const auto& entry : fs::directory_iterator(out))
          if (entry.path().filename().string().starts_with("part-")) fs::remove(entry.path());
    } else if (fs::exists(out + "/report.json")) {
      const Json report = read_json_file(out + "/report.json");
      if (report.value("run", Json()) != run_description())
        throw Error(fmt::format("{} holds the result of other files or options", out))
            .hint("--overwrite replaces it, or choose another --out");
      fs::remove_all(work_);
      result.finished = result.was_finished = true;
      result.report = report;
      return true;
    } else if (fs::exists(out) && !fs::exists(work_) && !fs::is_empty(out)) {
      throw Error(fmt::format("{} is not empty, and no run was begun there", out))
          .hint("choose another --out");
    }
    std::error_code code;
    fs::create_directories(work_, code);
    if (code) throw Error(fmt::format("cannot create {}: {}", work_, code.message()));
    return false;
  }

  // Whatever the result depends on. Not the threads, the memory, the time.
  Json run_description() const {
    Json run = Json::object();
    run["version"] = kVersion;
    run["packed"] = packed_;
    run["skip_corrupt"] = request_.skip_corrupt;
    Json options = write_fields(options_);
    options["dedup"].erase("memory");
    run["options"] = std::move(options);
    Json inputs = Json::array();
    for (const InputFile& file : request_.input) {
      std::error_code code;
      const auto size = fs::file_size(file.path, code);
      const auto time = fs::last_write_time(file.path, code).time_since_epoch().count();
      inputs.push_back({file.path, file.part, file.part_given, size, time});
    }
    // A list of a million files is compared by its checksum.
    run["inputs"] = request_.input.size();
    run["inputs_checksum"] =
        fmt::format("{:016x}", checksum64(inputs.dump(-1, ' ', false, Json::error_handler_t::replace)));
    run["evaluation"] = Json::array();
    for (const std::string& path : request_.evaluation) run["evaluation"].push_back(utf8_lossy(path));
    return run;
  }

  void compare_configuration() {
    Json now = run_description();
    now["evaluation_checksum"] = fmt::format("{:016x}", evaluation_->fingerprint());
    const std::string path = work_ + "/run.json";
    if (!fs::exists(path)) return write_file_atomic(path, now.dump(1));
    Json before = read_json_file(path);
    // Nothing of a damaged file is in the result yet: its error ended the run, and suggests --skip-corrupt.
    if (request_.skip_corrupt && before.value("skip_corrupt", Json()) == false) {
      before["skip_corrupt"] = true;
      if (before == now) return write_file_atomic(path, now.dump(1));
    }
    if (before == now) return;
    std::string what = "options";
    for (const auto& [key, value] : now.items())
      if (!before.contains(key) || before.at(key) != value) {
        what = key;
        break;
      }
    throw Error(fmt::format("{} was begun with other {}", request_.out, what))
        .hint("--overwrite begins anew, or run it as it was begun");
  }

  static void remove_temporaries(const std::string& folder) {
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().filename().string().find(".tmp.") != std::string::npos) fs::remove(entry.path());
  }

  std::string unit_path(int64_t unit, const char* ending) const {
    return fmt::format("{}/unit-{:06}.{}", work_, unit, ending);
  }
  void check_stop() const {
    if (progress_.stop && *progress_.stop) throw Stopped();
  }

  // ---- Stage 1

  void filter() {
    const int64_t total = file_bytes(request_.input);
    Place place;
    Json last;
    while (fs::exists(unit_path(units_, "json"))) {
      last = read_json_file(unit_path(units_, "json"));
      add_unit(last);
      place.file = last.at("file").get<int64_t>();
      place.position = {.offset = last.at("offset").get<int64_t>(),
                        .number = last.at("number").get<int64_t>()};
    }
    if (units_ > 0 && last.at("end").get<bool>()) return;
    const size_t at_once = size_t(pool_.threads()) * 2;
    GroupReader reader(request_.input, read_, place, options_.unit_bytes, request_.skip_corrupt, at_once * 2);
    std::vector<Staged> unit;
    Place after = place;
    const auto close_unit = [&](bool end) {
      write_unit(unit, after, end);
      unit.clear();
    };
    for (;;) {
      check_stop();
      std::vector<Group> groups = reader.next(at_once);
      if (groups.empty()) break;
      std::vector<Staged> staged(groups.size());
      pool_.parallel_for(int64_t(groups.size()), [&](int64_t i) {
        workers_.use([&](Worker& worker) { staged[size_t(i)] = stage(groups[size_t(i)], worker); });
      });
      for (Staged& s : staged) unit.push_back(std::move(s));
      after = groups.back().after;
      if (groups.back().ends_unit) close_unit(false);
      update("filter", reader.consumed(), total,
             fmt::format("kept {}", human_count(double(kept_so_far(unit)))));
    }
    after = {.file = int64_t(request_.input.size())};
    close_unit(true);
  }

  int64_t kept_so_far(const std::vector<Staged>& unit) const {
    int64_t documents = tally_.kept.documents;
    for (const Staged& s : unit) documents += s.tally.kept.documents;
    return documents;
  }

  Staged stage(Group& group, Worker& worker) {
    Staged out;
    out.tally.problems = group.problems;
    const int64_t bands = options_.dedup.near.on ? options_.dedup.near.bands : 0;
    out.fingerprints.keys.resize(size_t(bands));
    worker.keys.resize(size_t(options_.dedup.near.bands));
    std::string lines, why;
    Document document;
    Clock clock;
    auto& seconds = worker.seconds;
    for (auto& [record, number] : group.records) {
      const InputFile& file = request_.input[size_t(number)];
      const size_t raw = record.bytes.size();
      const Drop drop = parse_record(file, read_, record, document, &why);
      seconds["parse"] += clock.lap();
      const int64_t size = drop == Drop::none ? int64_t(document.text.size()) : int64_t(raw);
      out.tally.read.add(size);
      out.tally.parts_read[document.part].add(size);
      const auto drop_it = [&](const std::string& reason, std::string explanation, size_t begin = 0) {
        out.tally.dropped[reason].add(size);
        const std::string_view text =
            drop == Drop::none ? std::string_view(document.text) : std::string_view(record.bytes);
        out.tally.sample(reason, {.order = mix(checksum64(document.id, checksum64(document.source))),
                                  .id = excerpt(document.id, 0, 300),
                                  .source = utf8_lossy(document.source),
                                  .part = document.part,
                                  .why = utf8_lossy(explanation),
                                  .excerpt = utf8_lossy(excerpt(text, begin, kExcerpt))});
      };
      if (drop != Drop::none) {
        drop_it(fmt::format("read.{}", drop_name(drop)), why);
        continue;
      }
      if (document.encoding != "utf-8") out.tally.encodings[document.encoding].add(size);
      if (options_.tidy) {
        bool changed = false;
        out.tally.repaired += tidy_text(document.text, &changed);
        out.tally.tidied += changed;
      }
      seconds["tidy"] += clock.lap();
      const bool code = is_code_name(document.id) || is_code_name(document.source);
      Language language{.code = "code", .share = 1};
      if (!code) language = identify_language(document.text);
      seconds["language"] += clock.lap();
      if (!code && !options_.languages.empty()) {
        const bool wanted = std::find(options_.languages.begin(), options_.languages.end(), language.code) !=
                            options_.languages.end();
        if (!wanted || language.share < options_.min_language_share) {
          drop_it("language", fmt::format("{}, {:.0f} % of the text", language.code, language.share * 100));
          continue;
        }
      }
      const Verdict verdict =
          code ? worker.filters.code(document.text) : worker.filters.prose(document.text, language.code);
      out.tally.lines_removed += verdict.lines_removed;
      seconds["filters"] += clock.lap();
      if (!verdict.keep()) {
        const bool least = std::string_view(verdict.rule).find(".min_") != std::string_view::npos;
        drop_it(verdict.rule, fmt::format("{:.4g}, {} {:.4g}", verdict.value, least ? "at least" : "at most",
                                          verdict.limit));
        continue;
      }
      find_words(document.text, worker.words);
      seconds["words"] += clock.lap();
      if (const Contamination hit = evaluation_->find(worker.words); hit.found) {
        const std::string& path = evaluation_->files()[size_t(hit.file)].path;
        out.tally.evaluation[path].add(size);
        drop_it("evaluation",
                fmt::format("{}: {}", path,
                            excerpt(document.text, hit.begin, std::min<size_t>(hit.end - hit.begin, 200))),
                hit.begin > 100 ? hit.begin - 100 : 0);
        continue;
      }
      seconds["evaluation"] += clock.lap();
      // A text without words, such as a table of rules, is known by its bytes.
      out.fingerprints.text.push_back(worker.words.hash.empty() ? hash_text(document.text)
                                                                : hash_text(worker.words));
      if (bands > 0) {
        find_shingles(worker.words, options_.dedup.near.shingle_words, worker.shingles);
        seconds["shingles"] += clock.lap();
        worker.hasher.keys(worker.shingles, worker.keys);
        for (size_t band = 0; band < size_t(bands); ++band)
          out.fingerprints.keys[band].push_back(worker.keys[band]);
        seconds["minhash"] += clock.lap();
      }
      out.fingerprints.shingles.push_back(uint32_t(bands > 0 ? worker.shingles.size() : 0));
      lines += "{\"text\":";
      append_json_string(document.text, lines);
      lines += ",\"id\":";
      append_json_string(document.id, lines);
      lines += ",\"source\":";
      append_json_string(utf8_lossy(document.source), lines);
      lines += ",\"part\":";
      append_json_string(document.part, lines);
      lines += ",\"lang\":";
      append_json_string(language.code, lines);
      lines += "}\n";
      ++out.documents;
      const int64_t kept = int64_t(document.text.size());
      out.tally.kept.add(kept);
      out.tally.parts_kept[document.part].add(kept);
      out.tally.languages_kept[std::string(language.code)].add(kept);
      seconds["write"] += clock.lap();
    }
    out.frame = pack(lines);
    seconds["pack"] += clock.lap();
    return out;
  }

  std::string pack(const std::string& lines) const {
    return packed_ && !lines.empty() ? zstd_frame(lines, int(options_.zstd_level)) : lines;
  }
  std::string unpack(std::string_view frame) const {
    return packed_ && !frame.empty() ? zstd_unframe(frame) : std::string(frame);
  }

  void write_unit(std::vector<Staged>& unit, const Place& after, bool end) {
    Json json = Json::object();
    json["file"] = after.file;
    json["offset"] = after.position.offset;
    json["number"] = after.position.number;
    json["end"] = end;
    CleanTally tally;
    Fingerprints all;
    all.keys.resize(size_t(options_.dedup.near.on ? options_.dedup.near.bands : 0));
    Json groups = Json::array();
    for (const Staged& s : unit) {
      groups.push_back({s.frame.size(), s.documents, checksum64(s.frame)});
      tally.add(s.tally);
      all.text.insert(all.text.end(), s.fingerprints.text.begin(), s.fingerprints.text.end());
      all.shingles.insert(all.shingles.end(), s.fingerprints.shingles.begin(), s.fingerprints.shingles.end());
      for (size_t band = 0; band < all.keys.size(); ++band)
        all.keys[band].insert(all.keys[band].end(), s.fingerprints.keys[band].begin(),
                              s.fingerprints.keys[band].end());
    }
    json["groups"] = std::move(groups);
    json["tally"] = tally_json(tally);
    write_file_atomic(unit_path(units_, "docs"), [&](const Append& append) {
      for (const Staged& s : unit) append(s.frame);
    });
    write_fingerprints(unit_path(units_, "prints"), all);
    write_file_atomic(unit_path(units_, "json"), json.dump());  // last: now the unit counts
    add_unit(json);
  }

  struct Frame {
    int64_t offset, bytes, first, documents;  // first: number of its first document in the corpus
    uint64_t checksum;
  };
  void add_unit(const Json& json) {
    tally_.add(read_tally(json.at("tally")));
    if (tally_.parts_read.size() > kMostParts)
      throw Error(fmt::format("the documents name more than {} parts, such as \"{}\"", kMostParts,
                              tally_.parts_read.begin()->first))
          .hint("is their field \"part\" something else? --input part=path gives the name for all");
    std::vector<Frame> frames;
    int64_t offset = 0;
    for (const Json& group : json.at("groups")) {
      frames.push_back({.offset = offset,
                        .bytes = group.at(0).get<int64_t>(),
                        .first = documents_,
                        .documents = group.at(1).get<int64_t>(),
                        .checksum = group.at(2).get<uint64_t>()});
      offset += frames.back().bytes;
      documents_ += frames.back().documents;
    }
    frames_.push_back(std::move(frames));
    ++units_;
  }

  std::string read_frame(const MappedFile& file, const std::string& path, const Frame& frame) const {
    if (frame.offset + frame.bytes > file.size()) throw Error(fmt::format("{} has become shorter", path));
    const std::string_view bytes = file.view().substr(size_t(frame.offset), size_t(frame.bytes));
    if (checksum64(bytes) != frame.checksum)
      throw Error(fmt::format("{} is damaged (a checksum is wrong)", path)).hint("--overwrite begins anew");
    return std::string(bytes);
  }

  // ---- Stage 2

  void compare() {
    check_stop();
    const std::string path = work_ + "/duplicates.json";
    if (fs::exists(path)) return read_duplicates(read_json_file(path));
    Clock clock;
    std::vector<std::string> files;
    for (int64_t unit = 0; unit < units_; ++unit) files.push_back(unit_path(unit, "prints"));
    const ShinglesOf shingles_of = [&](const auto& wanted, const auto& document) {
      for (int64_t unit = 0; unit < units_; ++unit) shingles_of_unit(unit, wanted, document);
    };
    DedupResult found =
        find_duplicates(files, options_.dedup, work_ + "/compare", shingles_of, pool_, [&](double share) {
          check_stop();
          update("compare", int64_t(share * 1000), 1000, "");
        });
    seconds_["compare"] += clock.lap();
    Json json = Json::object();
    json["exact"] = found.exact;
    json["near"] = found.near;
    json["candidates"] = found.candidates;
    json["similarity"] = found.similarity;
    std::string bits((found.removed.size() + 7) / 8, '\0');
    for (size_t i = 0; i < found.removed.size(); ++i)
      if (found.removed[i]) bits[i / 8] = char(bits[i / 8] | 1 << i % 8);
    json["removed_checksum"] = checksum64(bits);
    write_file_atomic(work_ + "/duplicates.bits", bits);
    Json samples = Json::array();
    for (const Duplicate& d : found.samples) samples.push_back({d.document, d.kept, d.jaccard, d.exact});
    json["samples"] = std::move(samples);
    write_file_atomic(path, json.dump());
    read_duplicates(json);
  }

  void shingles_of_unit(int64_t unit, const std::function<bool(int64_t)>& wanted,
                        const std::function<void(int64_t, std::span<const uint64_t>)>& document) {
    const std::string path = unit_path(unit, "docs");
    const MappedFile file(path);
    const std::vector<Frame>& frames = frames_[size_t(unit)];
    const size_t at_once = size_t(pool_.threads()) * 4;
    using Sets = std::vector<std::pair<int64_t, std::vector<uint64_t>>>;
    for (size_t from = 0; from < frames.size(); from += at_once) {
      const size_t count = std::min(at_once, frames.size() - from);
      std::vector<Sets> sets(count);
      pool_.parallel_for(int64_t(count), [&](int64_t i) {
        const Frame& frame = frames[from + size_t(i)];
        bool any = false;
        for (int64_t d = 0; d < frame.documents && !any; ++d) any = wanted(frame.first + d);
        if (!any) return;
        workers_.use([&](Worker& worker) {
          for_each_line(read_frame(file, path, frame), frame, [&](int64_t d, std::string_view line) {
            if (!wanted(d)) return;
            JsonField fields[] = {{.name = "text"}};
            CHECK(read_json_fields(line, fields).empty() && fields[0].found);
            find_words(fields[0].value, worker.words);
            find_shingles(worker.words, options_.dedup.near.shingle_words, worker.shingles);
            sets[size_t(i)].emplace_back(d, worker.shingles);
          });
        });
      });
      for (const Sets& some : sets)
        for (const auto& [d, set] : some) document(d, set);
    }
  }

  template <class Line>
  void for_each_line(const std::string& packed, const Frame& frame, const Line& line) const {
    const std::string lines = unpack(packed);
    int64_t d = frame.first;
    for (size_t at = 0; at < lines.size(); ++d) {
      const size_t end = lines.find('\n', at);
      CHECK(end != std::string::npos);
      line(d, std::string_view(lines).substr(at, end - at + 1));
      at = end + 1;
    }
    CHECK(d == frame.first + frame.documents);
  }

  void read_duplicates(const Json& json) {
    const std::string path = work_ + "/duplicates.bits", bits = read_file(path);
    if (int64_t(bits.size()) != (documents_ + 7) / 8 ||
        checksum64(bits) != json.at("removed_checksum").get<uint64_t>())
      throw Error(fmt::format("{} is damaged (its checksum is wrong)", path)).hint("--overwrite begins anew");
    removed_.resize(size_t(documents_));
    for (size_t i = 0; i < removed_.size(); ++i) removed_[i] = bits[i / 8] >> i % 8 & 1;
    duplicates_ = json;
    // In the report: as many as of every other reason, those whose numbers' hashes are smallest.
    std::vector<Json> of_kind[2];
    for (const Json& s : json.at("samples")) of_kind[s.at(3).get<bool>()].push_back(s);
    for (auto& list : of_kind) {
      std::sort(list.begin(), list.end(), [](const Json& a, const Json& b) {
        return mix(a.at(0).get<uint64_t>() + 1) < mix(b.at(0).get<uint64_t>() + 1);
      });
      if (list.size() > CleanTally::kSamples) list.resize(CleanTally::kSamples);
      for (const Json& s : list) {
        samples_.push_back(s);
        shown_.insert(s.at(0).get<int64_t>());
        shown_.insert(s.at(1).get<int64_t>());
      }
    }
  }

  // ---- Stage 3

  std::string part_name(int64_t unit) const {
    return fmt::format("part-{:06}.jsonl{}", unit, packed_ ? ".zst" : "");
  }

  void write() {
    Clock clock;
    int64_t kept = 0;
    for (int64_t unit = 0; unit < units_; ++unit) {
      const std::string tally_path = unit_path(unit, "final");
      if (!fs::exists(tally_path)) write_part(unit, tally_path);
      const Json json = read_json_file(tally_path);
      const CleanTally of_unit = read_tally(json.at("tally"));
      kept += of_unit.kept.documents;
      final_.add(of_unit);
      for (const auto& [number, shown] : json.at("shown").items()) shown_text_[std::stoll(number)] = shown;
      update("write", unit + 1, units_, fmt::format("{} documents", human_count(double(kept))));
      check_stop();
    }
    seconds_["write parts"] += clock.lap();
  }

  void write_part(int64_t unit, const std::string& tally_path) {
    const std::string path = unit_path(unit, "docs");
    const MappedFile file(path);
    const std::vector<Frame>& frames = frames_[size_t(unit)];
    struct Out {
      std::string frame;
      CleanTally tally;  // kept: what stays; dropped: what goes, of the documents that stage 1 kept
      Json shown = Json::object();
    };
    std::vector<Out> outs(frames.size());
    pool_.parallel_for(int64_t(frames.size()), [&](int64_t i) {
      const Frame& frame = frames[size_t(i)];
      Out& out = outs[size_t(i)];
      const std::string packed = read_frame(file, path, frame);
      bool any_removed = false, any_shown = false;
      for (int64_t d = frame.first; d < frame.first + frame.documents; ++d)
        any_removed |= removed_[size_t(d)];
      if (const auto at = shown_.lower_bound(frame.first);
          at != shown_.end() && *at < frame.first + frame.documents)
        any_shown = true;
      if (!any_removed && !any_shown) {
        out.frame = packed;
        out.tally.kept.documents = frame.documents;
        return;
      }
      std::string lines;
      for_each_line(packed, frame, [&](int64_t d, std::string_view line) {
        const bool removed = removed_[size_t(d)], shown = shown_.count(d) > 0;
        if (!removed) {
          lines += line;
          ++out.tally.kept.documents;
        }
        if (!removed && !shown) return;
        JsonField fields[] = {
            {.name = "text"}, {.name = "id"}, {.name = "source"}, {.name = "part"}, {.name = "lang"}};
        CHECK(read_json_fields(line, fields).empty() && fields[0].found && fields[4].found);
        const auto& [text, id, source, part, language] = fields;
        if (removed) {
          const int64_t size = int64_t(text.value.size());
          out.tally.dropped["duplicate"].add(size);
          out.tally.parts_kept[part.value].add(size);  // to be taken off
          out.tally.languages_kept[language.value].add(size);
        }
        if (shown)
          out.shown[std::to_string(d)] = {excerpt(id.value, 0, 300), source.value, part.value,
                                          excerpt(text.value, 0, kExcerpt), text.value.size()};
      });
      out.frame = any_removed ? pack(lines) : packed;
    });
    CleanTally tally;
    Json shown = Json::object();
    for (const Out& out : outs) {
      tally.add(out.tally);
      for (const auto& [number, item] : out.shown.items()) shown[number] = item;
    }
    if (tally.kept.documents > 0) {
      fs::create_directories(work_ + "/parts");
      write_file_atomic(work_ + "/parts/" + part_name(unit), [&](const Append& append) {
        for (const Out& out : outs) append(out.frame);
      });
    }
    write_file_atomic(tally_path, Json{{"tally", tally_json(tally)}, {"shown", shown}}.dump());
    fs::remove(path);  // nothing reads it any more, and the disk is spared a second copy of the corpus
  }

  void finish(CleanResult& result) {
    // All parts are whole: now they get their final names, and then the report says so.
    for (int64_t unit = 0; unit < units_; ++unit) {
      const std::string made = work_ + "/parts/" + part_name(unit);
      if (fs::exists(made)) fs::rename(made, request_.out + "/" + part_name(unit));
    }
    CleanTally all = tally_;
    const auto take_off = [](std::map<std::string, Tally>& from, const std::map<std::string, Tally>& what) {
      for (const auto& [name, tally] : what) {
        from[name].documents -= tally.documents;
        from[name].bytes -= tally.bytes;
      }
    };
    take_off(all.parts_kept, final_.parts_kept);
    take_off(all.languages_kept, final_.languages_kept);
    const Tally duplicates = final_.dropped["duplicate"];
    all.kept.documents -= duplicates.documents;
    all.kept.bytes -= duplicates.bytes;
    CHECK(all.kept.documents == final_.kept.documents,
          fmt::format("{} {}", all.kept.documents, final_.kept.documents));
    for (const Json& s : samples_) {
      const Json& one = shown_text_.at(s.at(0).get<int64_t>());
      const Json& other = shown_text_.at(s.at(1).get<int64_t>());
      const bool exact = s.at(3).get<bool>();
      all.sample(exact ? "duplicate.exact" : "duplicate.near",
                 {.order = mix(s.at(0).get<uint64_t>() + 1),
                  .id = one.at(0).get<std::string>(),
                  .source = one.at(1).get<std::string>(),
                  .part = one.at(2).get<std::string>(),
                  .why = exact ? "the same words" : fmt::format("similarity {:.3f}", s.at(2).get<double>()),
                  .excerpt = one.at(3).get<std::string>(),
                  .of = other.at(0).get<std::string>(),
                  .of_excerpt = other.at(3).get<std::string>()});
    }
    result.report = make_report(all);
    write_file_atomic(request_.out + "/report.html", clean_report_html(result.report));
    write_file_atomic(request_.out + "/report.json", result.report.dump(1) + "\n");
    std::error_code code;
    fs::remove_all(work_, code);
    result.finished = true;
  }

  Json make_report(const CleanTally& all) {
    Json report = Json::object();
    report["run"] = run_description();
    const Json tally = tally_json(all);
    for (const char* key : {"read", "kept"}) report[key] = tally.at(key);
    const Tally duplicates = final_.dropped["duplicate"];
    report["duplicates"] = {
        {"exact", duplicates_.at("exact")},           {"near", duplicates_.at("near")},
        {"documents", duplicates.documents},          {"bytes", duplicates.bytes},
        {"candidates", duplicates_.at("candidates")}, {"similarity", duplicates_.at("similarity")}};
    for (const char* key : {"dropped", "parts_read", "parts_kept", "languages_kept", "encodings",
                            "lines_removed", "tidied", "repaired", "problems"})
      report[key] = tally.at(key);
    Json evaluation = Json::array();
    for (const Decontaminator::File& file : evaluation_->files()) {
      const auto hits = all.evaluation.find(file.path);
      evaluation.push_back({{"path", utf8_lossy(file.path)},
                            {"items", file.items},
                            {"short_items", file.short_items},
                            {"documents", hits == all.evaluation.end() ? 0 : hits->second.documents}});
    }
    report["evaluation"] = std::move(evaluation);
    Json samples = tally.at("samples");
    for (auto& [reason, list] : samples.items())
      for (Json& s : list) s.erase("order");
    report["samples"] = std::move(samples);
    return report;
  }

  void update(const char* stage, int64_t done, int64_t total, const std::string& extra) const {
    if (progress_.update) progress_.update(stage, done, total, extra);
  }

  const CleanRequest& request_;
  const CleanOptions& options_;
  const CleanProgress& progress_;
  const ReadOptions read_;
  const bool packed_;
  const std::string work_;
  ThreadPool pool_;
  Workers workers_;
  std::optional<Decontaminator> evaluation_;
  int64_t units_ = 0, documents_ = 0;
  std::vector<std::vector<Frame>> frames_;  // by unit
  CleanTally tally_;                        // of stage 1
  std::vector<bool> removed_;
  Json duplicates_;
  std::vector<Json> samples_;  // of duplicates, for the report
  std::set<int64_t> shown_;    // documents of which the report shows some text
  std::map<int64_t, Json> shown_text_;
  CleanTally final_;  // of stage 3
  std::map<std::string, double> seconds_;
};

}  // namespace

void check(const CleanOptions& o) {
  if (o.format != "auto" && o.format != "text" && o.format != "lines" && o.format != "jsonl")
    throw Error(fmt::format("format is \"{}\"; it is auto, text, lines or jsonl", utf8_lossy(o.format)));
  if (o.max_document < 1 || o.max_document > (int64_t(1) << 31))
    throw Error(fmt::format("max_document is {}; it is a number from 1 to 2^31", o.max_document));
  if (o.unit_bytes < (64 << 10))
    throw Error(fmt::format("unit_bytes is {}; it is at least 65536", o.unit_bytes));
  if (o.zstd_level < 0 || o.zstd_level > 19)
    throw Error(fmt::format("zstd_level is {}; it is a number from 0 to 19", o.zstd_level));
  if (o.dedup.memory < (1 << 20))
    throw Error(fmt::format("dedup.memory is {}; it is at least 1048576", o.dedup.memory));
  if (!(o.min_language_share >= 0 && o.min_language_share <= 1))
    throw Error(fmt::format("min_language_share is {}; it is a share from 0 to 1", o.min_language_share));
  check_encoding_name(o.encoding);
  const std::vector<std::string_view> known = known_languages();
  for (const std::string& language : o.languages)
    if (!std::binary_search(known.begin(), known.end(), language) && language != "und")
      throw Error(fmt::format("languages: \"{}\" is not one that can be told", utf8_lossy(language)))
          .hint(fmt::format("known are {}, and und for the rest", fmt::join(known, " ")));
  check(o.filters);
  check(o.decontaminate);
  check(o.dedup.near);
}

CleanResult clean_documents(const CleanRequest& request, const CleanOptions& options,
                            const CleanProgress& progress) {
  check(options);
  if (request.threads < 1) throw Error("at least one thread must work");
  try {
    return Cleaner(request, options, progress).run();
  } catch (const nlohmann::json::exception& e) {  // JSON, but not as a run writes it
    throw Error(fmt::format("what an earlier run left in {} is damaged: {}", request.out, e.what()))
        .hint("--overwrite begins anew");
  }
}

}  // namespace cachalot
