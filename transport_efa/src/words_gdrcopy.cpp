// SPDX-License-Identifier: Apache-2.0
// Words in GPU memory, changed by CPU loads and stores through GDRCopy's mapping. Not atomic against the GPU's own
// changes of the same word, like every agent on the CPU.
#include <string>

#include "log.h"
#include "words_check.h"
#include "words_cuda.h"
#include "words_gdrcopy_pages.h"

namespace nvshmem_efa {
namespace {

// One load or store each, of the word's own size: the GPU must never see half of a change.
template <class Word>
Word* as(volatile void* mapped) {
    return static_cast<Word*>(const_cast<void*>(mapped));
}

uint64_t load_word(volatile void* mapped, uint8_t bytes) {
    if (bytes == 2) return __atomic_load_n(as<uint16_t>(mapped), __ATOMIC_RELAXED);
    if (bytes == 4) return __atomic_load_n(as<uint32_t>(mapped), __ATOMIC_RELAXED);
    return __atomic_load_n(as<uint64_t>(mapped), __ATOMIC_RELAXED);
}

void store_word(volatile void* mapped, uint8_t bytes, uint64_t value) {
    if (bytes == 2) {
        __atomic_store_n(as<uint16_t>(mapped), static_cast<uint16_t>(value), __ATOMIC_RELAXED);
    } else if (bytes == 4) {
        __atomic_store_n(as<uint32_t>(mapped), static_cast<uint32_t>(value), __ATOMIC_RELAXED);
    } else {
        __atomic_store_n(as<uint64_t>(mapped), value, __ATOMIC_RELAXED);
    }
}

class GdrWords final : public WordEngine {
   public:
    GdrWords(std::unique_ptr<GdrPages> pages, std::unique_ptr<WordEngine> fallback)
        : pages_(std::move(pages)), fallback_(std::move(fallback)) {}
    const char* name() const override { return "gdrcopy"; }

    Status apply(WordRequest* requests, size_t count) override {
        const WordRequest* stored = nullptr;
        for (size_t i = 0; i < count; ++i) {
            EFA_TRY(word_check(requests[i], i));
            volatile void* mapped = nullptr;
            if (Status status = pages_->find(requests[i].addr, &mapped); !status.ok()) {
                if (!fallback_) return std::move(status).with_context("word request " + std::to_string(i));
                EFA_TRY(land_stores(&stored));  // the other engine has another way to the GPU: keep the order
                EFA_TRY(apply_elsewhere(&requests[i], status));
            } else if (apply_mapped(&requests[i], mapped)) {
                stored = &requests[i];
            }
        }
        return land_stores(&stored);
    }

   private:
    static bool apply_mapped(WordRequest* request, volatile void* mapped) {
        const bool reads = request->op != WordOp::kSet || request->needs_fetch;
        const uint64_t before = reads ? load_word(mapped, request->bytes) : 0;
        request->fetched = before;
        const uint64_t after = word_apply(*request, before);
        const bool is_store = request->op == WordOp::kSet || request->op == WordOp::kSwap;
        if (!is_store && after == before) return false;
        store_word(mapped, request->bytes, after);
        GdrPages::flush_stores();  // keeps the words' order, and pairs with the GPU's acquire of the later word
        return true;
    }

    // Stores are posted on the bus; a read from the same device comes back only after they have arrived. Pairs with the
    // loads of a kernel that spins on the word.
    Status land_stores(const WordRequest** stored) {
        if (!*stored) return Status();
        volatile void* mapped = nullptr;
        EFA_TRY(pages_->find((*stored)->addr, &mapped));
        // Volatile, so that the compiler keeps a read whose value nobody uses.
        (void)*static_cast<volatile uint16_t*>(mapped);
        *stored = nullptr;
        return Status();
    }

    Status apply_elsewhere(WordRequest* request, const Status& why) {
        if (!told_) {
            EFA_LOG(kDebug, "agent", "a word goes by the %s engine instead of GDRCopy: %s", fallback_->name(),
                    why.message());
            told_ = true;
        }
        return fallback_->apply(request, 1);
    }

    std::unique_ptr<GdrPages> pages_;
    std::unique_ptr<WordEngine> fallback_;
    bool told_ = false;
};

}  // namespace

Status make_gdrcopy_words(std::unique_ptr<WordEngine>&& fallback, std::unique_ptr<WordEngine>* engine) {
    std::unique_ptr<GdrPages> pages;
    EFA_TRY(GdrPages::open(&pages));
    *engine = std::make_unique<GdrWords>(std::move(pages), std::move(fallback));
    return Status();
}

}  // namespace nvshmem_efa
