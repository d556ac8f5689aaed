// SPDX-License-Identifier: Apache-2.0
#include "words_cuda.h"

#include <string>

#include "knobs.h"
#include "log.h"

namespace nvshmem_efa {

Status make_cuda_words(std::unique_ptr<WordEngine>* engine) {
    const Knobs& settings = knobs();
    if (settings.amo == "gpu") {
        if (settings.gdrcopy == "on")
            return Status::error(Code::kConfig, "set one of them: NVSHMEM_EFA_GDRCOPY=auto, or NVSHMEM_EFA_AMO=agent",
                                 "NVSHMEM_EFA_AMO=gpu and NVSHMEM_EFA_GDRCOPY=on ask for two different agents");
        return make_gpu_warp_words(settings.timeout_ms, engine);
    }
    if (settings.gdrcopy == "off") return make_stream_words(settings.timeout_ms, engine);
    if (settings.gdrcopy == "on") return make_gdrcopy_words(nullptr, engine);
    std::unique_ptr<WordEngine> stream;
    EFA_TRY(make_stream_words(settings.timeout_ms, &stream));
    Status status = make_gdrcopy_words(std::move(stream), engine);
    if (status.ok()) return Status();
    EFA_LOG(kDebug, "agent", "GDRCopy is not used: %s", status.message());
    *engine = std::move(stream);
    return Status();
}

}  // namespace nvshmem_efa
