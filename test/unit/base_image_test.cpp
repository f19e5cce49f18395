// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/base_image.h"
#include "migrator/cli.h"
#include "nbd-proxy/image_marker.h"
#include "test/unit/folder.h"

#include <fstream>
#include <sstream>

#include <sys/stat.h>

using namespace drover;

namespace {

const std::string uuid = "0f8fad5b-d9cb-469f-a165-708677289501";

std::string content_of(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

struct Images : Folder {
    Images() {
        site.images = path / "images";
        std::filesystem::create_directories(path / "images/templates");
        make_image("images/template.img");
        make_image("images/templates/small.img");
    }
    void refuses(const std::string& image, const char* why) const {
        CAPTURE(image);
        CHECK_THROWS_WITH_AS(open_base(site, image, uuid), doctest::Contains(why), Error);
    }
    SiteConfig site;
};

} // namespace

TEST_CASE("base: a file below the folder of images, by either path") {
    const Images images;
    for (const std::string& image : {std::string("template.img"),
                                     std::string("templates/small.img"),
                                     images.file("images/template.img"),
                                     images.file("images/templates/small.img")}) {
        CHECK(open_base(images.site, image, uuid));
    }
}

TEST_CASE("base: there is no way out of the folder of images") {
    const Images images;
    std::filesystem::create_symlink("../vm.img", images.path / "images/link.img");
    std::filesystem::create_directory_symlink("..", images.path / "images/up");
    images.refuses(images.file("vm.img"), "not below");
    images.refuses(images.file("images-2/vm.img"), "not below");
    images.refuses("../vm.img", "without . and ..");
    images.refuses("templates/../../vm.img", "without . and ..");
    images.refuses(images.file("images/../vm.img"), "without . and ..");
    images.refuses("./template.img", "without . and ..");
    images.refuses("templates//../template.img", "without . and ..");
    images.refuses("link.img", "link");
    images.refuses("up/vm.img", "up/vm.img");
    images.refuses("templates", "not a regular file");
    images.refuses("none.img", "No such file");
    images.refuses("", "expected");
    images.refuses(images.file("images/"), "expected");
    images.refuses(std::string("template.img\0", 13), "no path");
    images.refuses(std::string(5000, 'a'), "no path");
    REQUIRE(::mkfifo(images.file("images/fifo.img").c_str(), 0600) == 0);
    images.refuses("fifo.img", "not a regular file");
}

TEST_CASE("base: another VM's disk is none, an old copy of the same is one") {
    const Images images;
    const std::string image = images.file("images/template.img");
    write_marker(image, image, {uuid, 3, 'f', 7});
    CHECK(open_base(images.site, "template.img", uuid));
    write_marker(image, image, {"0f8fad5b-d9cb-469f-a165-708677289502", 3, 'f', 7});
    images.refuses("template.img", "another disk");
}

TEST_CASE("base: an image starts with what it has, cut off or filled up with zeroes, without its "
          "marker") {
    const Images images;
    const std::string base = images.file("images/template.img");
    const std::string image = images.file("new.img");
    std::string data(3 * MiB, 'x');
    std::fill(data.begin() + MiB, data.begin() + 2 * MiB, '\0');
    images.make_image("images/template.img", data);
    write_marker(base, base, {uuid, 3, 'f', 7});
    const UniqueFd from = open_base(images.site, "template.img", uuid);
    uint64_t size = 0;
    SUBCASE("as large") {
        size = data.size();
    }
    SUBCASE("larger") {
        size = data.size() + 5000;
    }
    SUBCASE("smaller") {
        size = MiB / 2 + 7;
    }
    images.make_image("new.img.seed", "of one that was killed");
    seed_image(from.get(), image, size);
    data.resize(size, '\0');
    CHECK(content_of(image) == data);
    CHECK_FALSE(read_marker(image, image));
    CHECK_FALSE(std::filesystem::exists(image + ".seed"));
    // Never over one that is there.
    CHECK_THROWS_AS(seed_image(from.get(), image, 10), Error);
    CHECK(content_of(image) == data);
    CHECK_FALSE(std::filesystem::exists(image + ".seed"));
}

TEST_CASE("base: holes stay holes") {
    const Images images;
    std::filesystem::resize_file(images.path / "images/template.img", 16 * MiB);
    seed_image(
        open_base(images.site, "template.img", uuid).get(), images.file("new.img"), 32 * MiB);
    struct stat info {};
    REQUIRE(::stat(images.file("new.img").c_str(), &info) == 0);
    CHECK(info.st_size == 32 * MiB);
    CHECK(info.st_blocks * 512 < 1 * MiB);
}

TEST_CASE("--base: an image for the one disk, or one for each by its name") {
    VmFile one, two;
    one.name = two.name = "vm1";
    one.disks = {{"root", {}}};
    two.disks = {{"root", {}}, {"data", {}}};
    using Bases = std::map<std::string, std::string>;
    CHECK(bases_of(one, {}).empty());
    CHECK((bases_of(one, {"a.img"}) == Bases{{"root", "a.img"}}));
    CHECK((bases_of(one, {"root=a.img"}) == Bases{{"root", "a.img"}}));
    CHECK((bases_of(one, {"/images/a=b"}) == Bases{{"root", "/images/a=b"}}));
    CHECK((bases_of(two, {"data=a=b"}) == Bases{{"data", "a=b"}}));
    CHECK((bases_of(two, {"root=a", "data=b"}) == Bases{{"root", "a"}, {"data", "b"}}));
    CHECK_THROWS_AS(bases_of(two, {"a.img"}), Error);
    CHECK_THROWS_AS(bases_of(two, {"swap=a.img"}), Error);
    CHECK_THROWS_AS(bases_of(two, {"root=a", "root=b"}), Error);
    CHECK_THROWS_AS(bases_of(one, {"a", "b"}), Error);
    CHECK_THROWS_AS(bases_of(one, {"root="}), Error);
}
