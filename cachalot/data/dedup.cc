#include "data/dedup.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <queue>
#include <unordered_map>

#include "base/error.h"
#include "base/files.h"
#include "data/checksum.h"

namespace cachalot {

namespace fs = std::filesystem;

namespace {

constexpr char kMagic[8] = {'c', 'a', 'c', 'h', 'f', 'p', '0', '1'};

struct Header {
  char magic[8];
  int64_t documents;
  int64_t bands;
  uint64_t checksum;  // of the table of checksums, seeded with the two numbers
};

std::string_view bytes_of(const auto& items) {
  return {reinterpret_cast<const char*>(items.data()), items.size() * sizeof items[0]};
}

uint64_t table_checksum(std::span<const uint64_t> table, int64_t documents, int64_t bands) {
  return checksum64(bytes_of(table), mix(uint64_t(documents)) + uint64_t(bands));
}

// A file of fixed records, read or written from front to back. Working files only: whoever is killed makes them
// again.
class WorkFile {
 public:
  WorkFile(std::string path, const char* mode)
      : path_(std::move(path)), file_(std::fopen(path_.c_str(), mode)) {
    if (!file_) throw Error(fmt::format("cannot open {}: {}", path_, std::strerror(errno)));
    std::setvbuf(file_.get(), nullptr, _IOFBF, 256 << 10);
  }
  void write(const void* data, size_t bytes) {
    // An empty list has no address to give to fwrite.
    if (bytes > 0 && std::fwrite(data, 1, bytes, file_.get()) != bytes) fail();
  }
  bool read(void* data, size_t bytes) {  // false at the end
    if (bytes == 0) return true;
    const size_t n = std::fread(data, 1, bytes, file_.get());
    if (n == 0 && std::feof(file_.get())) return false;
    if (n != bytes) throw Error(fmt::format("{} has become shorter", path_));
    return true;
  }
  void close() {
    if (std::fclose(file_.release()) != 0) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw Error(fmt::format("cannot write {}: {}", path_, std::strerror(errno)))
        .hint("is the disk full? --out on another one, or free some space");
  }
  struct Close {
    void operator()(FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<FILE, Close> file_;
};

// Two documents that may be, or are, duplicates: the earlier one and the later one.
struct Pair {
  int64_t later, earlier;
  auto operator<=>(const Pair&) const = default;
};
struct Edge {
  Pair pair;
  double jaccard;
  auto operator<=>(const Edge& o) const { return pair <=> o.pair; }
  bool operator==(const Edge& o) const { return pair == o.pair; }
};

// Files that are each sorted, as one sorted sequence without repetitions.
template <class Item> class Merge {
 public:
  explicit Merge(const std::vector<std::string>& paths) {
    for (const std::string& path : paths) {
      files_.push_back(std::make_unique<WorkFile>(path, "rb"));
      advance(files_.size() - 1);
    }
  }
  bool next(Item& item) {
    while (!heap_.empty()) {
      const auto [top, file] = heap_.top();
      heap_.pop();
      advance(file);
      if (last_ && *last_ == top) continue;
      item = top;
      last_ = top;
      return true;
    }
    return false;
  }

 private:
  struct Entry {
    Item item;
    size_t file;
    bool operator<(const Entry& o) const { return o.item < item; }  // the smallest on top
  };
  void advance(size_t file) {
    Item item;
    if (files_[file]->read(&item, sizeof item)) heap_.push({item, file});
  }
  std::vector<std::unique_ptr<WorkFile>> files_;
  std::priority_queue<Entry> heap_;
  std::optional<Item> last_;
};

template <class Item> void write_run(const std::string& path, std::vector<Item>& items) {
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
  WorkFile file(path, "wb");
  file.write(items.data(), items.size() * sizeof(Item));
  file.close();
  items.clear();
}

// More files than this are merged into one first.
constexpr size_t kMostRuns = 400;

template <class Item> void reduce_runs(std::vector<std::string>& runs, const std::string& folder, int* made) {
  while (runs.size() > kMostRuns) {
    const std::vector<std::string> some(runs.begin(), runs.begin() + kMostRuns / 2);
    const std::string path = fmt::format("{}/merged-{}", folder, (*made)++);
    WorkFile out(path, "wb");
    Merge<Item> merge(some);
    for (Item item; merge.next(item);) out.write(&item, sizeof item);
    out.close();
    for (const std::string& run : some) fs::remove(run);
    runs.erase(runs.begin(), runs.begin() + kMostRuns / 2);
    runs.push_back(path);
  }
}

// The `i`th of `count` equal ranges of all 64-bit keys that `key` is in.
int64_t range_of(uint64_t key, int64_t count) {
  return int64_t((unsigned __int128)(key)*uint64_t(count) >> 64);
}

class Finder {
 public:
  Finder(const std::vector<std::string>& files, const DedupOptions& options, const std::string& folder,
         ThreadPool& pool, const std::function<void(double)>& progress)
      : options_(options), folder_(folder), pool_(pool), progress_(progress) {
    for (const std::string& file : files) {
      units_.emplace_back(file);
      first_.push_back(documents_);
      documents_ += units_.back().documents();
      if (units_.back().bands() != (options.near.on ? options.near.bands : 0))
        throw Error(fmt::format("{} has {} bands; these options ask for {}", file, units_.back().bands(),
                                options.near.on ? options.near.bands : 0))
            .hint("start anew with --overwrite");
    }
    result_.removed.resize(size_t(documents_));
  }

  DedupResult find(const ShinglesOf& shingles_of) {
    if (options_.exact) find_exact();
    progress_(0.1);
    if (options_.near.on && documents_ > 0) {
      find_candidates();
      progress_(0.4);
      compare(shingles_of);
    }
    for (const auto& kind : sampled_)
      for (const auto& [hash, duplicate] : kind) result_.samples.push_back(duplicate);
    std::sort(result_.samples.begin(), result_.samples.end(),
              [](const Duplicate& a, const Duplicate& b) { return a.document < b.document; });
    progress_(1);
    return std::move(result_);
  }

 private:
  // Of a kind of duplicate, the 40 with the smallest hash of their number: as good as drawn, always the same.
  void sample(const Duplicate& duplicate) {
    auto& kept = sampled_[duplicate.exact];
    kept.emplace(mix(uint64_t(duplicate.document) + 1), duplicate);
    if (kept.size() > 40) kept.erase(std::prev(kept.end()));
  }

  void find_exact() {
    struct Entry {
      TextHash hash;
      int64_t document;
      auto operator<=>(const Entry&) const = default;
    };
    const int64_t ranges =
        documents_ * int64_t(sizeof(Entry)) / std::max<int64_t>(options_.memory / 2, 1) + 1;
    std::vector<Entry> entries;
    for (int64_t range = 0; range < ranges; ++range) {
      entries.clear();
      for (size_t u = 0; u < units_.size(); ++u) {
        const std::vector<TextHash> hashes = units_[u].text();
        for (size_t i = 0; i < hashes.size(); ++i)
          if (range_of(hashes[i].high, ranges) == range)
            entries.push_back({hashes[i], first_[u] + int64_t(i)});
      }
      std::sort(entries.begin(), entries.end());
      for (size_t i = 0, first = 0; i < entries.size(); ++i) {
        if (entries[i].hash != entries[first].hash) first = i;
        if (i == first) continue;
        result_.removed[size_t(entries[i].document)] = true;
        ++result_.exact;
        sample(
            {.document = entries[i].document, .kept = entries[first].document, .jaccard = 1, .exact = true});
      }
      progress_(0.1 * double(range + 1) / double(ranges));
    }
  }

  // The pairs of documents with one key, as sorted runs on the disk.
  void find_candidates() {
    const int64_t bands = options_.near.bands;
    std::vector<std::vector<std::string>> runs(static_cast<size_t>(bands));
    pool_.parallel_for(bands, [&](int64_t band) { find_pairs(int(band), runs[size_t(band)]); });
    for (auto& of_band : runs) runs_.insert(runs_.end(), of_band.begin(), of_band.end());
    int made = 0;
    reduce_runs<Pair>(runs_, folder_, &made);
  }

  void find_pairs(int band, std::vector<std::string>& runs) {
    constexpr size_t kAll = 16, kFirst = 12, kBefore = 4;  // see dedup.h
    struct Entry {
      uint64_t key;
      int64_t document;
      auto operator<=>(const Entry&) const = default;
    };
    const int64_t mine =
        std::max<int64_t>(options_.memory / 2 / std::min<int64_t>(pool_.threads(), options_.near.bands), 1);
    const int64_t ranges = documents_ * int64_t(sizeof(Entry)) / mine + 1;
    const size_t most_pairs = size_t(std::max<int64_t>(mine / int64_t(sizeof(Pair)), 1024));
    std::vector<Entry> entries;
    std::vector<Pair> pairs;
    const auto flush = [&] {
      if (pairs.empty()) return;
      runs.push_back(fmt::format("{}/pairs-{:03}-{:05}", folder_, band, runs.size()));
      write_run(runs.back(), pairs);
    };
    for (int64_t range = 0; range < ranges; ++range) {
      entries.clear();
      for (size_t u = 0; u < units_.size(); ++u) {
        const std::vector<uint64_t> keys = units_[u].keys(band);
        for (size_t i = 0; i < keys.size(); ++i) {
          const int64_t document = first_[u] + int64_t(i);
          if (keys[i] != 0 && range_of(keys[i], ranges) == range && !result_.removed[size_t(document)])
            entries.push_back({keys[i], document});
        }
      }
      std::sort(entries.begin(), entries.end());
      for (size_t begin = 0, end; begin < entries.size(); begin = end) {
        for (end = begin + 1; end < entries.size() && entries[end].key == entries[begin].key;) ++end;
        for (size_t j = begin + 1; j < end; ++j) {
          for (size_t i = begin; i < j; ++i) {
            if (end - begin > kAll && i >= begin + kFirst && i + kBefore < j) {
              i = j - kBefore - 1;
              continue;
            }
            pairs.push_back({entries[j].document, entries[i].document});
          }
          if (pairs.size() >= most_pairs) flush();
        }
      }
    }
    flush();
  }

  void compare(const ShinglesOf& shingles_of) {
    // First round through the pairs: which documents are needed, how large the sets of the earlier ones are.
    std::vector<bool> is_earlier(static_cast<size_t>(documents_)), is_later(static_cast<size_t>(documents_));
    {
      Merge<Pair> pairs(runs_);
      for (Pair pair; pairs.next(pair); ++result_.candidates) {
        is_earlier[size_t(pair.earlier)] = true;
        is_later[size_t(pair.later)] = true;
      }
    }
    int64_t bytes = 0;
    for (size_t u = 0; u < units_.size(); ++u) {
      const std::vector<uint32_t> counts = units_[u].shingles();
      for (size_t i = 0; i < counts.size(); ++i)
        if (is_earlier[size_t(first_[u]) + i]) bytes += int64_t(counts[i]) * 8 + 100;
    }
    const int64_t share = std::max<int64_t>(options_.memory / 2 / pool_.threads(), 1);
    const int64_t files = std::clamp<int64_t>(bytes / share + 1, 1, 250);
    const auto file_of = [&](int64_t document) { return int64_t(mix(uint64_t(document)) % uint64_t(files)); };
    const auto set_path = [&](int64_t file) { return fmt::format("{}/sets-{:03}", folder_, file); };

    // Second round, through the documents and the pairs at once: each set goes to the files of its partners.
    {
      std::vector<std::unique_ptr<WorkFile>> out;
      for (int64_t file = 0; file < files; ++file)
        out.push_back(std::make_unique<WorkFile>(set_path(file), "wb"));
      Merge<Pair> pairs(runs_);
      Pair pair;
      bool more = pairs.next(pair);
      std::vector<int64_t> partners, of_file;
      std::vector<int64_t> targets;
      shingles_of([&](int64_t d) { return is_earlier[size_t(d)] || is_later[size_t(d)]; },
                  [&](int64_t d, std::span<const uint64_t> set) {
                    partners.clear();
                    for (; more && pair.later <= d; more = pairs.next(pair))
                      if (pair.later == d) partners.push_back(pair.earlier);
                    targets.clear();
                    for (const int64_t partner : partners) targets.push_back(file_of(partner));
                    if (is_earlier[size_t(d)]) targets.push_back(file_of(d));
                    std::sort(targets.begin(), targets.end());
                    targets.erase(std::unique(targets.begin(), targets.end()), targets.end());
                    for (const int64_t target : targets) {
                      of_file.clear();
                      for (const int64_t partner : partners)
                        if (file_of(partner) == target) of_file.push_back(partner);
                      const int64_t head[4] = {d, int64_t(is_earlier[size_t(d)] && file_of(d) == target),
                                               int64_t(of_file.size()), int64_t(set.size())};
                      WorkFile& file = *out[size_t(target)];
                      file.write(head, sizeof head);
                      file.write(of_file.data(), of_file.size() * 8);
                      file.write(set.data(), set.size() * 8);
                    }
                    if ((d & 1023) == 0) progress_(0.4 + 0.4 * double(d) / double(documents_));
                  });
      for (auto& file : out) file->close();
    }
    for (const std::string& run : runs_) fs::remove(run);
    progress_(0.8);

    // Every file on its own: the earlier sets stay, the later ones are compared with them as they come by.
    std::vector<std::string> edges(static_cast<size_t>(files));
    std::vector<std::array<int64_t, 20>> similarity(size_t(files), std::array<int64_t, 20>{});
    pool_.parallel_for(files, [&](int64_t file) {
      edges[size_t(file)] = fmt::format("{}/edges-{:03}", folder_, file);
      WorkFile in(set_path(file), "rb"), out(edges[size_t(file)], "wb");
      std::unordered_map<int64_t, std::vector<uint64_t>> earlier;
      std::vector<int64_t> partners;
      std::vector<uint64_t> set;
      for (int64_t head[4]; in.read(head, sizeof head);) {
        partners.resize(size_t(head[2]));
        set.resize(size_t(head[3]));
        if (!partners.empty()) in.read(partners.data(), partners.size() * 8);
        if (!set.empty()) in.read(set.data(), set.size() * 8);
        for (const int64_t partner : partners) {
          const double j = jaccard(earlier.at(partner), set);
          ++similarity[size_t(file)][std::min<size_t>(size_t(j * 20), 19)];
          if (j < options_.near.jaccard) continue;
          const Edge edge{.pair = {.later = head[0], .earlier = partner}, .jaccard = j};
          out.write(&edge, sizeof edge);
        }
        if (head[1]) earlier.emplace(head[0], set);
      }
      out.close();
      fs::remove(set_path(file));
    });
    for (const auto& of_file : similarity)
      for (size_t i = 0; i < of_file.size(); ++i) result_.similarity[i] += of_file[i];
    progress_(0.95);

    // In order of the later document: when it is judged, all before it are.
    Merge<Edge> merge(edges);
    for (Edge edge; merge.next(edge);) {
      const auto [later, earlier] = edge.pair;
      if (result_.removed[size_t(later)] || result_.removed[size_t(earlier)]) continue;
      result_.removed[size_t(later)] = true;
      ++result_.near;
      sample({.document = later, .kept = earlier, .jaccard = float(edge.jaccard)});
    }
    for (const std::string& path : edges) fs::remove(path);
  }

  const DedupOptions& options_;
  std::string folder_;
  ThreadPool& pool_;
  const std::function<void(double)>& progress_;
  std::vector<FingerprintFile> units_;
  std::vector<int64_t> first_;  // number of a unit's first document
  int64_t documents_ = 0;
  std::vector<std::string> runs_;
  std::map<uint64_t, Duplicate> sampled_[2];
  DedupResult result_;
};

}  // namespace

TextHash hash_text(std::string_view text) {
  return {.high = checksum64(text, 0x7465787431), .low = checksum64(text, 0x7465787432)};
}

TextHash hash_text(const Words& words) {
  uint64_t high = 1, low = 2;
  for (const uint64_t word : words.hash) {
    high = mix(high + word);
    low = mix((low ^ word) * 0x9E3779B97F4A7C15u);
  }
  return {.high = high, .low = low};
}

void write_fingerprints(const std::string& path, const Fingerprints& unit) {
  const size_t n = unit.text.size();
  CHECK(unit.shingles.size() == n);
  std::vector<uint64_t> table = {checksum64(bytes_of(unit.text)), checksum64(bytes_of(unit.shingles))};
  for (const auto& keys : unit.keys) {
    CHECK(keys.size() == n);
    table.push_back(checksum64(bytes_of(keys)));
  }
  Header header{.documents = int64_t(n), .bands = int64_t(unit.keys.size())};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.checksum = table_checksum(table, header.documents, header.bands);
  write_file_atomic(path, [&](const Append& append) {
    append({reinterpret_cast<const char*>(&header), sizeof header});
    append(bytes_of(table));
    append(bytes_of(unit.text));
    append(bytes_of(unit.shingles));
    for (const auto& keys : unit.keys) append(bytes_of(keys));
  });
}

FingerprintFile::FingerprintFile(std::string path) : path_(std::move(path)) {
  const MappedFile file(path_);
  Header header;
  const auto damaged = [&](const char* what) {
    return Error(fmt::format("{} is damaged ({})", path_, what)).hint("start anew with --overwrite");
  };
  if (file.size() < int64_t(sizeof header)) throw damaged("it is too short");
  std::memcpy(&header, file.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) throw damaged("it is no file of fingerprints");
  if (header.bands < 0 || header.bands > 200 || header.documents < 0 ||
      header.documents > (int64_t(1) << 40) ||
      file.size() !=
          int64_t(sizeof header) + (2 + header.bands) * 8 + header.documents * (20 + 8 * header.bands))
    throw damaged("its size is not what its header says");
  documents_ = header.documents;
  bands_ = int(header.bands);
  checksums_.resize(size_t(2 + bands_));
  std::memcpy(checksums_.data(), file.data() + sizeof header, checksums_.size() * 8);
  if (table_checksum(checksums_, documents_, bands_) != header.checksum)
    throw damaged("its checksum is wrong");
}

template <class T> std::vector<T> FingerprintFile::column(int number, int64_t at) const {
  const MappedFile map(path_);
  std::vector<T> items(static_cast<size_t>(documents_));
  const int64_t begin = int64_t(sizeof(Header)) + (2 + bands_) * 8 + at;
  if (map.size() < begin + documents_ * int64_t(sizeof(T)))
    throw Error(fmt::format("{} has become shorter", path_));
  if (documents_ > 0) std::memcpy(items.data(), map.data() + begin, items.size() * sizeof(T));
  if (checksum64(bytes_of(items)) != checksums_[size_t(number)])
    throw Error(fmt::format("{} is damaged (the checksum of column {} is wrong)", path_, number))
        .hint("start anew with --overwrite");
  return items;
}

std::vector<TextHash> FingerprintFile::text() const { return column<TextHash>(0, 0); }
std::vector<uint32_t> FingerprintFile::shingles() const { return column<uint32_t>(1, documents_ * 16); }
std::vector<uint64_t> FingerprintFile::keys(int band) const {
  return column<uint64_t>(2 + band, documents_ * (20 + 8 * int64_t(band)));
}

DedupResult find_duplicates(const std::vector<std::string>& files, const DedupOptions& options,
                            const std::string& folder, const ShinglesOf& shingles_of, ThreadPool& pool,
                            const std::function<void(double)>& progress) {
  std::error_code code;
  fs::remove_all(folder, code);
  fs::create_directories(folder);
  DedupResult result = Finder(files, options, folder, pool, progress).find(shingles_of);
  fs::remove_all(folder, code);
  return result;
}

}  // namespace cachalot
