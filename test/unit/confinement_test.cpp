// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/confinement.h"
#include "test/unit/folder.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include <doctest/doctest.h>

using namespace drover;

namespace {

bool has(const std::vector<std::string>& paths, const std::string& path) {
    return std::count(paths.begin(), paths.end(), path) == 1;
}

} // namespace

TEST_CASE("confinement: an image is renamed in its folder, and nothing else there is written") {
    const Folder folder;
    std::filesystem::create_directory(folder.file("images"));
    const std::string images = folder.file("images"), image = images + "/vm.img";
    std::ofstream(image) << "content";
    EngineOptions options{.file = image, .uri = "", .state_dir = folder.file("state")};
    const FileAccess files = files_of_disk(options, image, folder.file("run") + "/disk.ctl");
    CHECK(has(files.write, image));
    CHECK(has(files.write, folder.file("state")));
    CHECK(has(files.names, images));
    CHECK(has(files.names, folder.file("run")));
    CHECK_FALSE(has(files.read, images));

    options.state_dir.clear(); // then it stays where it is
    CHECK_FALSE(has(files_of_disk(options, image, "").names, images));
}

TEST_CASE("confinement: keys that an NBD URI names") {
    const auto keys = [](const std::string& uri) {
        std::vector<std::string> files = files_of_disk({.file = "", .uri = uri}, "", "").read;
        std::erase_if(files, [](const std::string& file) { return !file.starts_with("/keys"); });
        return files;
    };
    using Files = std::vector<std::string>;
    CHECK((keys("nbd://host/") == Files{}));
    CHECK((keys("nbds://u@host/x?tls-psk-file=/keys/a") == Files{"/keys/a"}));
    CHECK((keys("nbds://host/x?socket=/s&tls-certificates=/keys%2Fb%20c#f") == Files{"/keys/b c"}));
    CHECK((keys("nbds://host/x?tls-psk-file=/keys/%4&tls-psk-file=/keys/%zz") ==
           Files{"/keys/%4", "/keys/%zz"}));
    CHECK((keys("nbds://host/x?nothing&") == Files{}));
}
