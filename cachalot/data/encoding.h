// Bytes of unknown origin to UTF-8: what a reader of documents does before anybody sees the text.
//
// In this order: a byte order mark decides (UTF-8, UTF-16, UTF-32); valid UTF-8 without NUL is UTF-8; else, if
// the caller names an encoding, it is tried; else (`auto`) the legacy encodings are, see below; else the text
// is no text. Nothing is ever half converted: bytes that an encoding does not define refuse it.
//
// `auto` guesses only where the guess can be checked: UTF-8 with a few bytes lost (each becomes U+FFFD),
// Shift_JIS, EUC-JP, GB18030, Big5, EUC-KR (the result must be made of the language's commonest characters to a
// fair share), and Windows-1252 (mostly ASCII, letters of Western Europe beside letters). A short or odd text
// stays unknown, and is dropped and counted: a wrong guess would be worse than a lost document.
#pragma once

#include <string>
#include <string_view>

namespace cachalot {

// Every byte part of a valid sequence (Unicode, table 3-7).
bool is_utf8(std::string_view text);

// Makes `text` valid UTF-8 in place, without a byte order mark. Returns the name of the encoding it was in:
// "utf-8", "utf-16le", "cp1252", "utf-8 with errors", ..., or "" when it is none that is allowed, and then
// `text` is as it was. `assume`: "auto", "utf-8" (nothing is guessed), or a name that iconv knows.
std::string to_utf8(std::string& text, std::string_view assume);

// Error unless iconv can convert from `name` ("auto" and "utf-8" always pass).
void check_encoding_name(const std::string& name);

}  // namespace cachalot
