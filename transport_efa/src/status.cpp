// SPDX-License-Identifier: Apache-2.0
#include "status.h"

#include <cstdarg>
#include <cstdio>

namespace nvshmem_efa {

const char* code_name(Code code) {
    switch (code) {
        case Code::kOk: return "ok";
        case Code::kInvalidArgument: return "invalid_argument";
        case Code::kConfig: return "config";
        case Code::kMissing: return "missing";
        case Code::kTooOld: return "too_old";
        case Code::kUnsupported: return "unsupported";
        case Code::kResource: return "resource";
        case Code::kUnregistered: return "unregistered";
        case Code::kPeer: return "peer";
        case Code::kTimeout: return "timeout";
        case Code::kDevice: return "device";
        case Code::kMismatch: return "mismatch";
        case Code::kProtocol: return "protocol";
        case Code::kAuth: return "auth";
        case Code::kInternal: return "internal";
    }
    return "unknown";
}

Status Status::error(Code code, const char* hint, const char* format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    Status status;
    status.detail_ = std::make_unique<Detail>(Detail{code, text});
    if (hint) status.detail_->message += std::string("; hint: ") + hint;
    return status;
}

Status&& Status::with_context(const std::string& context) && {
    if (detail_) detail_->message = context + ": " + detail_->message;
    return std::move(*this);
}

}  // namespace nvshmem_efa
