// Any bytes are a checked file or an Error; every byte that a checked file describes can be read.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cachalot;
  try {
    const SafetensorsFile file = SafetensorsFile::parse({reinterpret_cast<const char*>(data), size}, "fuzz");
    int64_t total = 0;
    unsigned sum = 0;
    for (const StoredTensor& t : file.tensors()) {
      CHECK(file.find(t.name) == &t && t.bytes() >= 0, t.describe());
      total += t.bytes();
      for (int64_t i = 0; i < t.bytes(); ++i) sum += t.data[i];
    }
    CHECK(total <= int64_t(size) && sum <= 255 * size);
  } catch (const Error&) {
  }
  return 0;
}
