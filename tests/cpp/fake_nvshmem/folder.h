// SPDX-License-Identifier: Apache-2.0
// A folder of NVSHMEM that a test puts together from the fakes, gone when the test ends.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "check.h"

namespace fake {

struct Folder {
    std::filesystem::path path;
    Folder() {
        char name[] = "/tmp/nvshmem-efa-fakes-XXXXXX";
        const char* made = mkdtemp(name);
        CHECK(made != nullptr);
        path = made;
    }
    ~Folder() { std::filesystem::remove_all(path); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    // A copy, not a link: the loader tells libraries apart by inode, and $ORIGIN is where the file lies.
    Folder& add(const std::filesystem::path& file, const std::string& as) {
        std::filesystem::create_directories((path / as).parent_path());
        std::filesystem::copy_file(file, path / as);
        return *this;
    }
    std::string str() const { return path.string(); }
};

}  // namespace fake
