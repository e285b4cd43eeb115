// libFuzzer: any bytes as a token shard. They are refused with an Error, or every token can be read, lies in
// the vocabulary, and the documents tile the tokens; putting the documents together again gives the same
// bytes. Half of the inputs get right checksums, so that what they say is looked at.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.h"
#include "data/checksum.h"
#include "data/shard.h"

namespace {

using namespace cachalot;  // NOLINT

void expect(bool holds) {
  if (!holds) std::abort();
}

void put_checksum(std::string& bytes, size_t at, uint64_t value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

// The tables' and the header's checksums, as the header's counts place them.
void mend(std::string& bytes) {
  if (bytes.size() < kShardHeaderBytes) return;
  uint32_t width;
  uint64_t tokens, documents;
  std::memcpy(&width, bytes.data() + 12, sizeof width);
  std::memcpy(&tokens, bytes.data() + 16, sizeof tokens);
  std::memcpy(&documents, bytes.data() + 24, sizeof documents);
  if (tokens < bytes.size() && documents < bytes.size() && width <= 4) {
    const size_t token_bytes = (tokens * width + 7) / 8 * 8,
                 blocks = (tokens + kShardBlock - 1) / kShardBlock;
    const size_t ends = kShardHeaderBytes + token_bytes, checksums = ends + 8 * documents;
    if (checksums + 8 * blocks == bytes.size()) {
      for (size_t b = 0; b < blocks; ++b) {
        const size_t first = b * size_t(kShardBlock),
                     count = std::min(size_t(kShardBlock), size_t(tokens) - first);
        put_checksum(bytes, checksums + 8 * b,
                     checksum64({bytes.data() + kShardHeaderBytes + first * width, count * width}));
      }
      put_checksum(bytes, 72, checksum64(std::string_view(bytes).substr(ends)));
    }
  }
  put_checksum(bytes, kShardHeaderBytes - 8,
               checksum64(std::string_view(bytes).substr(0, kShardHeaderBytes - 8)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] & 1) mend(bytes);
  try {
    const Shard shard = Shard::from_bytes(bytes, "shard");
    shard.verify();
    ShardBuilder again(shard.header());
    int64_t tokens = 0;
    for (int64_t i = 0; i < shard.documents(); ++i) {
      expect(shard.document_begin(i) == tokens && shard.document_end(i) > tokens);
      std::vector<int32_t> ids(size_t(shard.document_end(i) - tokens));
      shard.read(tokens, ids);
      tokens = shard.document_end(i);
      again.add(ids, i == 0 ? shard.header().text_bytes : 0);
    }
    expect(tokens == shard.tokens());
    const std::string written = shard_bytes(std::move(again));
    expect(written == bytes);
  } catch (const Error&) {
  }
  return 0;
}
