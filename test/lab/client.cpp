// SPDX-License-Identifier: GPL-2.0-or-later
// lab-client: what the lab's guest looks like from outside, and whether its
// disk holds what it promised.
//
//   lab-client watch ADDRESS REPORT
//       Waits until the guest answers, then keeps one connection to its records and one to its
//       echo, and never opens another: a connection that breaks is an error. REPORT is rewritten
//       (renamed into place) five times a second and at the end, by SIGTERM or SIGINT:
//       {"acknowledged": N, "records": {"messages", "silence_ms", "silence_at_ms"},
//       "echo": {the same}, "errors": [...], "seconds"}. silence_ms is the longest time in which
//       nothing came, silence_at_ms the Unix time of its beginning. Exit 1 if there were errors.
//   lab-client tell ADDRESS WORD          sends a command to the guest, prints its answer
//   lab-client check RECORDS ACKNOWLEDGED
//       Reads the guest's file of records: each up to ACKNOWLEDGED must be there, whole and in its
//       place. Prints {"records", "acknowledged", "size"}; exit 1 and the reason if one is not.
//   lab-client replay LOG IMAGE
//       Applies a log of writes, as QEMU's blklogwrites driver makes it, to a raw image.
//       Prints {"writes", "bytes"}.
//   lab-client qmp SOCKET COMMAND [JSON]  executes a QMP command, prints what it returned
#include "client.h"

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace {

int run(const std::vector<std::string>& arguments) {
    const std::string verb = arguments.empty() ? "" : arguments[0];
    const size_t count = arguments.size();
    if (verb == "watch" && count == 3) {
        return lab::watch(arguments[1], arguments[2]);
    }
    if (verb == "tell" && count == 3) {
        return lab::tell(arguments[1], arguments[2]);
    }
    if (verb == "check" && count == 3) {
        return lab::check(arguments[1], std::stoull(arguments[2]));
    }
    if (verb == "replay" && count == 3) {
        return lab::replay(arguments[1], arguments[2]);
    }
    if (verb == "qmp" && (count == 3 || count == 4)) {
        return lab::qmp(arguments[1], arguments[2], count == 4 ? arguments[3] : "{}");
    }
    std::fprintf(stderr,
                 "usage: lab-client watch ADDRESS REPORT\n"
                 "       lab-client tell ADDRESS WORD\n"
                 "       lab-client check RECORDS ACKNOWLEDGED\n"
                 "       lab-client replay LOG IMAGE\n"
                 "       lab-client qmp SOCKET COMMAND [JSON]\n");
    return 2;
}

} // namespace

int main(int argc, char** argv) {
    try {
        return run({argv + 1, argv + argc});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "lab-client: %s\n", error.what());
        return 1;
    }
}
