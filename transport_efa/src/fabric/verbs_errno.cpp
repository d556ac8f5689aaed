// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs_errno.h"

#include <cerrno>
#include <cstring>

namespace nvshmem_efa::verbs {
namespace {

const char* hint_of_errno(int error) {
    switch (error) {
        case ENOMEM:  // efa.ko answers so too when the device has no more queue pairs, regions or counters
        case EAGAIN:
            return "the device may have no more of them (ibv_devinfo -v; all processes count), or the locked-memory "
                   "limit is too low (ulimit -l unlimited); more than about 95 GB in 4 KiB pages needs huge pages";
        case ENOSPC:
        case EMFILE:
        case ENFILE:
            return "the device or the process ran out of this kind of object; use fewer queues, regions or files";
        case EOPNOTSUPP:
        case ENOSYS: return "the device, its driver or rdma-core cannot do this; docs/verbs.md lists the versions";
        case EACCES:
        case EPERM: return "check the permissions of /dev/infiniband/uverbs* and the container's devices";
        case ENODEV:
        case ENXIO: return "the device went away; dmesg | grep efa names the reason";
        case EINVAL:
            return "the driver refused the request; dmesg | grep efa may name the reason, docs/verbs.md the versions";
        default: return "dmesg | grep efa may name the reason";
    }
}

}  // namespace

Code code_of_errno(int error) {
    switch (error) {
        case ENOMEM:
        case EAGAIN:
        case ENOSPC:
        case EMFILE:
        case ENFILE: return Code::kResource;
        case EOPNOTSUPP:
        case ENOSYS: return Code::kUnsupported;
        case EACCES:
        case EPERM:
        case ENODEV:
        case ENXIO:
        case ENOENT: return Code::kMissing;
        default: return Code::kDevice;
    }
}

std::string errno_text(int error) {
    char buffer[128];
    const char* text = strerror_r(error, buffer, sizeof(buffer));  // the GNU one: it may not use the buffer
    return std::string(text) + " (errno " + std::to_string(error) + ")";
}

Status call_failed(const std::string& device, const char* call, const std::string& what, int error, const char* hint) {
    if (error < 0) error = -error;
    if (error == 0) error = EIO;
    return Status::error(code_of_errno(error), hint ? hint : hint_of_errno(error), "%s failed on %s%s%s: %s", call,
                         device.c_str(), what.empty() ? "" : ", ", what.c_str(), errno_text(error).c_str());
}

}  // namespace nvshmem_efa::verbs
