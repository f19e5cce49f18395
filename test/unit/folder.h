// SPDX-License-Identifier: GPL-2.0-or-later
// A folder with an image, for unit tests of what lies beside an image.
#pragma once

#include "common/unique_fd.h"
#include "nbd-proxy/record_store.h"

#include <filesystem>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

#include <fcntl.h>
#include <unistd.h>

namespace drover {

class Folder {
public:
    Folder() {
        std::string name = std::filesystem::temp_directory_path() / "drover-record-XXXXXX";
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        path = name;
        make_image("vm.img");
    }
    ~Folder() { std::filesystem::remove_all(path); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    void make_image(const std::string& name, std::string_view content = "content") const {
        std::filesystem::remove(path / name);
        const UniqueFd fd(::open((path / name).c_str(), O_WRONLY | O_CREAT, 0640));
        REQUIRE(::write(fd.get(), content.data(), content.size()) == ssize_t(content.size()));
    }
    std::string file(const std::string& name) const { return path / name; }
    RecordStoreOptions options(bool destination = false) const {
        RecordStoreOptions options;
        options.image = file("vm.img");
        options.state_dir = file("state");
        options.destination = destination;
        options.machine_id = "machine-1";
        return options;
    }

    std::filesystem::path path;
};

} // namespace drover
