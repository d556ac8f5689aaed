// SPDX-License-Identifier: Apache-2.0
// Errors as values. An OK status costs one null pointer; only a failure allocates.
// A message answers: what failed, where (PE, device, peer), what was expected, and after "hint:" what to do.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace nvshmem_efa {

// Stable numbers: they appear in docs/troubleshooting.md and in the C API.
enum class Code : int32_t {
    kOk = 0,
    kInvalidArgument = 1,  // the caller passed something wrong
    kConfig = 2,           // an environment setting is wrong
    kMissing = 3,          // needed hardware or software is not there
    kTooOld = 4,           // it is there, but too old
    kUnsupported = 5,      // the device or this version cannot do it
    kResource = 6,         // memory, queue, handle or shared-memory space ran out
    kUnregistered = 7,     // an address outside registered memory
    kPeer = 8,             // a peer died, does not answer or answered with an error
    kTimeout = 9,          // a wait reached its deadline
    kDevice = 10,          // the device completed a request with an error
    kMismatch = 11,        // two PEs differ in version or settings
    kProtocol = 12,        // bytes from the wire are not valid
    kAuth = 13,            // a connection without the job's secret
    kInternal = 14,        // a bug in this library
};

const char* code_name(Code code);  // "ok", "invalid_argument", ...

class [[nodiscard]] Status {
   public:
    Status() = default;  // OK
    // `hint` may be null. The text is composed as "<message>; hint: <hint>".
    [[gnu::format(printf, 3, 4)]] static Status error(Code code, const char* hint, const char* format, ...);

    bool ok() const { return detail_ == nullptr; }
    Code code() const { return detail_ ? detail_->code : Code::kOk; }
    const char* message() const { return detail_ ? detail_->message.c_str() : "ok"; }
    // Puts "context: " before the message; for callers that know more than the place which failed.
    Status&& with_context(const std::string& context) &&;

   private:
    struct Detail {
        Code code;
        std::string message;
    };
    std::unique_ptr<Detail> detail_;
};

#define EFA_TRY(expression)                                              \
    do {                                                                 \
        if (::nvshmem_efa::Status efa_try_status = (expression); !efa_try_status.ok()) return efa_try_status; \
    } while (0)

}  // namespace nvshmem_efa
