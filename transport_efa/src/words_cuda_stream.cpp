// SPDX-License-Identifier: Apache-2.0
// Words in GPU memory, changed by copies and stream memory operations: no SM, no GDRCopy, no allocation after start.
#include <string>
#include <vector>

#include "cuda_stream.h"
#include "log.h"
#include "words_check.h"
#include "words_cuda.h"

namespace nvshmem_efa {
namespace {

constexpr size_t kRequestsMax = 256;  // per round: bounds the pinned slots
constexpr size_t kWordsMax = 64;      // distinct words per round; looked up by walking
constexpr unsigned kBatchMax = 128;   // operations in one cuStreamBatchMemOp; the driver takes fewer than 256

// How a value gets into GPU memory. An engine goes down this list, once and for good, when the driver refuses.
enum class WriteWay : uint8_t { kBatch, kSingle, kCopy };

struct Word {
    uint64_t addr = 0;
    uint8_t bytes = 0;
    bool needs_read = false;
    uint64_t value = 0;
};

struct Write {
    size_t word = 0;
    uint64_t value = 0;
};

class StreamWords final : public WordEngine {
   public:
    StreamWords(std::unique_ptr<cuda::MarkedStream> stream, int64_t timeout_ms)
        : stream_(std::move(stream)), timeout_ms_(timeout_ms) {
        words_.reserve(kWordsMax);
        word_of_.reserve(kRequestsMax);
        writes_.reserve(kRequestsMax);
        ops_.reserve(kBatchMax);
    }
    const char* name() const override { return "stream"; }
    Status apply(WordRequest* requests, size_t count) override;

   private:
    struct Slots {
        uint64_t reads[kWordsMax];
        uint64_t writes[kRequestsMax];  // sources of copies, untouched until the round's last marker
    };

    Status plan_round(const WordRequest* requests, size_t count, size_t first, size_t* taken);
    bool find_word(const WordRequest& request, size_t* word);
    Status read_words();
    void compute(WordRequest* requests, size_t count);
    Status write_words();
    Status enqueue_writes(uint64_t* ticket);
    cuda::Result enqueue_write(size_t index);
    cuda::Result enqueue_batch();
    Status wait(uint64_t ticket, const char* what);
    void drain();
    Slots& slots() { return *static_cast<Slots*>(stream_->scratch()); }

    friend Status nvshmem_efa::make_stream_words(int64_t, std::unique_ptr<WordEngine>*);

    std::unique_ptr<cuda::MarkedStream> stream_;
    const int64_t timeout_ms_;
    WriteWay way_ = WriteWay::kBatch;
    bool is_broken_ = false;  // a wait timed out: the GPU may still write to the slots
    std::vector<Word> words_;
    std::vector<size_t> word_of_;  // by request of the round
    std::vector<Write> writes_;
    std::vector<cuda::MemOp> ops_;
};

Status StreamWords::apply(WordRequest* requests, size_t count) {
    if (is_broken_)
        return Status::error(Code::kDevice, "restart the program", "the stream agent gave up after an earlier timeout");
    cuda::ScopedContext scope(stream_->driver(), stream_->context());
    if (scope.result() != cuda::kSuccess)
        return cuda::driver_error(stream_->driver(), scope.result(), "making the agent's CUDA context current");
    for (size_t done = 0; done < count;) {
        size_t taken = 0;
        EFA_TRY(plan_round(requests + done, count - done, done, &taken));
        Status status = read_words();
        if (status.ok()) {
            compute(requests + done, taken);
            status = write_words();
        }
        if (!status.ok()) {
            drain();
            char where[96];
            snprintf(where, sizeof where, "word request %zu of %zu, at 0x%llx", done, count,
                     static_cast<unsigned long long>(requests[done].addr));
            return std::move(status).with_context(where);
        }
        done += taken;
    }
    return Status();
}

// Takes requests until one overlaps a word of another size, or room runs out: the next round then sees this one's result.
// An invalid request ends the round before it, and is reported when its turn comes.
Status StreamWords::plan_round(const WordRequest* requests, size_t count, size_t first, size_t* taken) {
    words_.clear();
    word_of_.clear();
    for (*taken = 0; *taken < count && *taken < kRequestsMax; ++*taken) {
        const WordRequest& request = requests[*taken];
        if (Status status = word_check(request, first + *taken); !status.ok()) {
            if (*taken == 0) return status;
            return Status();
        }
        size_t word = 0;
        if (!find_word(request, &word)) return Status();
        word_of_.push_back(word);
    }
    return Status();
}

bool StreamWords::find_word(const WordRequest& request, size_t* word) {
    for (*word = 0; *word < words_.size(); ++*word) {
        const Word& known = words_[*word];
        if (known.addr == request.addr && known.bytes == request.bytes) return true;
        if (known.addr < request.addr + request.bytes && request.addr < known.addr + known.bytes) return false;
    }
    if (words_.size() == kWordsMax) return false;
    const bool needs_read = request.op != WordOp::kSet || request.needs_fetch;
    words_.push_back({request.addr, request.bytes, needs_read, 0});
    return true;
}

Status StreamWords::read_words() {
    bool any = false;
    for (size_t i = 0; i < words_.size(); ++i) {
        if (!words_[i].needs_read) continue;
        any = true;
        slots().reads[i] = 0;
        if (auto result = stream_->driver().memcpy_dtoh_async(&slots().reads[i], words_[i].addr, words_[i].bytes,
                                                              stream_->stream()))
            return cuda::driver_error(stream_->driver(), result, "cuMemcpyDtoHAsync of a word",
                                      "the address must lie in GPU memory of this process");
    }
    if (!any) return Status();
    uint64_t ticket = 0;
    EFA_TRY(stream_->mark(&ticket));
    EFA_TRY(wait(ticket, "reading words"));
    for (size_t i = 0; i < words_.size(); ++i)
        if (words_[i].needs_read) words_[i].value = slots().reads[i];
    return Status();
}

// Requests to one word in a row become one write. A word that is changed again after another one was is written again,
// so that a kernel sees the changes in the order of the requests.
void StreamWords::compute(WordRequest* requests, size_t count) {
    writes_.clear();
    for (size_t i = 0; i < count; ++i) {
        Word& word = words_[word_of_[i]];
        const uint64_t before = word.value;
        requests[i].fetched = before & word_mask(word.bytes);
        word.value = word_apply(requests[i], before);
        const bool is_store = requests[i].op == WordOp::kSet || requests[i].op == WordOp::kSwap;
        if (!is_store && word.value == requests[i].fetched) continue;  // a fetch, or a compare that did not match
        if (!writes_.empty() && writes_.back().word == word_of_[i]) {
            writes_.back().value = word.value;
        } else {
            writes_.push_back({word_of_[i], word.value});
        }
    }
}

Status StreamWords::write_words() {
    if (writes_.empty()) return Status();
    uint64_t ticket = 0;
    EFA_TRY(enqueue_writes(&ticket));
    return wait(ticket, "writing words");
}

// Repeating a round's writes from its start is harmless: they are values, in order, and nobody was told yet.
Status StreamWords::enqueue_writes(uint64_t* ticket) {
    for (;;) {
        cuda::Result result = cuda::kSuccess;
        ops_.clear();
        for (size_t i = 0; i < writes_.size() && result == cuda::kSuccess; ++i) result = enqueue_write(i);
        if (result == cuda::kSuccess && way_ == WriteWay::kBatch) {
            ops_.push_back(stream_->mark_op(ticket));
            result = enqueue_batch();
            if (result == cuda::kSuccess) return Status();
        } else if (result == cuda::kSuccess) {
            return stream_->mark(ticket);
        }
        const bool is_refusal = result == cuda::kErrorNotSupported || result == cuda::kErrorInvalidValue;
        if (!is_refusal || way_ == WriteWay::kCopy)
            return cuda::driver_error(stream_->driver(), result, "writing a word of GPU memory",
                                      "the address must lie in GPU memory of this process");
        EFA_LOG(kDebug, "agent", "%s was refused (CUDA error %d); writing words by %s from now on",
                way_ == WriteWay::kBatch ? "cuStreamBatchMemOp" : "cuStreamWriteValue", result,
                way_ == WriteWay::kBatch ? "cuStreamWriteValue" : "copies");
        way_ = way_ == WriteWay::kBatch ? WriteWay::kSingle : WriteWay::kCopy;
    }
}

cuda::Result StreamWords::enqueue_write(size_t index) {
    const cuda::Driver& driver = stream_->driver();
    const Word& word = words_[writes_[index].word];
    const uint64_t value = writes_[index].value;
    // A 2-byte word has no stream memory operation, and its neighbour in the 4-byte word may be the GPU's: copy it.
    if (way_ == WriteWay::kCopy || word.bytes == 2) {
        if (cuda::Result result = enqueue_batch()) return result;
        slots().writes[index] = value;
        return driver.memcpy_htod_async(word.addr, &slots().writes[index], word.bytes, stream_->stream());
    }
    if (way_ == WriteWay::kSingle) {
        if (word.bytes == 4)
            return driver.stream_write_value32(stream_->stream(), word.addr, static_cast<uint32_t>(value),
                                               cuda::kWriteValueDefault);
        return driver.stream_write_value64(stream_->stream(), word.addr, value, cuda::kWriteValueDefault);
    }
    cuda::MemOp op;
    op.operation = word.bytes == 4 ? cuda::kMemOpWriteValue32 : cuda::kMemOpWriteValue64;
    op.addr = word.addr;
    op.value = value;
    ops_.push_back(op);
    return ops_.size() + 1 < kBatchMax ? cuda::kSuccess : enqueue_batch();  // the last place is the marker's
}

cuda::Result StreamWords::enqueue_batch() {
    if (ops_.empty()) return cuda::kSuccess;
    const cuda::Result result =
        stream_->driver().stream_batch_mem_op(stream_->stream(), static_cast<unsigned>(ops_.size()), ops_.data(), 0);
    ops_.clear();
    return result;
}

Status StreamWords::wait(uint64_t ticket, const char* what) {
    Status status = stream_->wait(ticket, timeout_ms_, what);
    if (!status.ok()) {
        is_broken_ = true;
        stream_->abandon();
    }
    return status;
}

// After a refusal half-way: copies already enqueued still read the slots, which the next round writes.
void StreamWords::drain() {
    uint64_t ticket = 0;
    if (is_broken_) return;
    if (!stream_->mark(&ticket).ok() || !wait(ticket, "draining after an error").ok()) is_broken_ = true;
}

}  // namespace

Status make_stream_words(int64_t timeout_ms, std::unique_ptr<WordEngine>* engine) {
    std::unique_ptr<cuda::MarkedStream> stream;
    EFA_TRY(cuda::MarkedStream::create(sizeof(StreamWords::Slots), &stream));
    // The first marker proves that stream memory operations work here at all, now rather than at the first signal.
    uint64_t ticket = 0;
    EFA_TRY(stream->mark(&ticket));
    if (Status status = stream->wait(ticket, timeout_ms, "the stream agent's first marker"); !status.ok()) {
        stream->abandon();
        return status;
    }
    *engine = std::make_unique<StreamWords>(std::move(stream), timeout_ms);
    return Status();
}

}  // namespace nvshmem_efa
