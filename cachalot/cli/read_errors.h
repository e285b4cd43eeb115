// Files that are mapped into memory (base/files.h) are read by no call that could return an error.
#pragma once

namespace cachalot::cli {

// From now on a page of a mapped file that cannot be read (a failing disk, a network file system that went
// away, a file that was cut: SIGBUS) ends the process with a message that names the file, and exit code 1.
void report_read_errors();

}  // namespace cachalot::cli
