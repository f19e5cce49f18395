// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/privilege.h"
#include "migrator/cli.h"

int main(int argc, char** argv) {
    drover::keep_memory_private();
    return drover::run_cli(argc, argv);
}
