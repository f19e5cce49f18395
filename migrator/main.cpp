// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/cli.h"

int main(int argc, char** argv) {
    return drover::run_cli(argc, argv);
}
