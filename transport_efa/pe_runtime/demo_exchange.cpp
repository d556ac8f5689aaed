// SPDX-License-Identifier: Apache-2.0
// Demo, third phase: expert-parallel token exchange. The "kernel" thread does it through the proxy lane, while the
// application's thread keeps the host lane busy and grows the heap.
#include "run.h"

namespace nvshmem_efa::pe {
namespace {

constexpr size_t kSidePlace = 32 * 1024;
constexpr uint32_t kSideOpsPerRound = 24;

// Before the bytes of a token. Its place in the target's memory depends on nothing but the sender's counter.
struct MessageHeader {
    uint32_t pe, token, slot, round;
    uint32_t expert;
    uint32_t check;  // of the fields above
    uint32_t reserved[2];
};
static_assert(sizeof(MessageHeader) == 32);

uint32_t header_check(const MessageHeader& h) {
    return static_cast<uint32_t>(
        mix(mix(uint64_t{h.pe} << 32 | h.token) ^ mix(uint64_t{h.slot} << 32 | h.round) ^ h.expert));
}

class Exchange {
   public:
    explicit Exchange(Run& run)
        : run_(run),
          demo_(run.options.demo),
          n_pes_(static_cast<uint32_t>(run.pe.n_pes())),
          me_(static_cast<uint32_t>(run.pe.id())),
          messages_max_(demo_.tokens * demo_.topk),
          expected_(demo_.hidden_bytes) {
        // Odd strides: hardly a message starts at an aligned address.
        stride_ = (sizeof(MessageHeader) + demo_.hidden_bytes) | 1;
    }
    Status allocate();
    Status release();
    Status round(uint32_t round);

   private:
    struct Counts {
        uint32_t messages;
        uint32_t round;
        uint32_t by_expert[126];  // experts of the target, modulo the array
    };

    uint32_t experts_per_pe() const { return demo_.experts / n_pes_; }
    Lane& lane() { return run_.proxy; }
    char* inbox(uint32_t source, uint32_t message) const {
        return inbox_ + (size_t{source} * messages_max_ + message) * stride_;
    }
    char* workplace(uint32_t source, uint32_t message) const {
        return work_ + (size_t{source} * messages_max_ + message) * stride_;
    }
    char* outbox(uint32_t message) const { return outbox_ + size_t{message} * stride_; }
    char* answer(uint32_t token, uint32_t slot) const {
        return answers_ + (size_t{token} * demo_.topk + slot) * (demo_.hidden_bytes | 1u);
    }
    void stage(uint32_t round);
    Status send(uint32_t round);
    Status serve(uint32_t source, uint32_t round);
    bool check_message(uint32_t source, uint32_t round, char* message);
    Status collect(uint32_t round);
    Status meet(uint32_t round);

    Run& run_;
    const DemoOptions& demo_;
    const uint32_t n_pes_, me_, messages_max_;
    size_t stride_ = 0;
    char *inbox_ = nullptr, *work_ = nullptr, *outbox_ = nullptr, *answers_ = nullptr;
    Counts *counts_in_ = nullptr, *counts_out_ = nullptr;
    uint64_t *counts_signal_ = nullptr, *token_signal_ = nullptr, *answer_signal_ = nullptr, *done_signal_ = nullptr;
    std::vector<uint64_t> tokens_seen_, answers_seen_;  // what the signals have reached so far
    std::vector<std::vector<uint32_t>> messages_;       // by target PE: token * topk + slot
    std::vector<unsigned char> expected_;
};

Status Exchange::allocate() {
    EFA_TRY(run_.allocate(size_t{n_pes_} * messages_max_ * stride_, &inbox_));
    EFA_TRY(run_.allocate(size_t{n_pes_} * messages_max_ * stride_, &work_));
    EFA_TRY(run_.allocate(size_t{messages_max_} * stride_, &outbox_));
    EFA_TRY(run_.allocate(size_t{messages_max_} * (demo_.hidden_bytes | 1u), &answers_));
    EFA_TRY(run_.allocate(n_pes_, &counts_in_));
    EFA_TRY(run_.allocate(n_pes_, &counts_out_));
    uint64_t* signals = nullptr;
    EFA_TRY(run_.allocate(size_t{n_pes_} * 4, &signals));
    std::memset(signals, 0, size_t{n_pes_} * 4 * sizeof *signals);  // the block may have been used before
    counts_signal_ = signals;
    token_signal_ = signals + n_pes_;
    answer_signal_ = signals + 2 * n_pes_;
    done_signal_ = signals + 3 * n_pes_;
    tokens_seen_.assign(n_pes_, 0);
    answers_seen_.assign(n_pes_, 0);
    return run_.pe.barrier_all();
}

Status Exchange::release() {
    for (void* block : {static_cast<void*>(counts_signal_), static_cast<void*>(counts_out_),
                        static_cast<void*>(counts_in_), static_cast<void*>(answers_), static_cast<void*>(outbox_),
                        static_cast<void*>(work_), static_cast<void*>(inbox_)})
        EFA_TRY(run_.pe.free(block));
    return Status();
}

void Exchange::stage(uint32_t round) {
    messages_.assign(n_pes_, {});
    std::memset(counts_out_, 0, n_pes_ * sizeof *counts_out_);
    uint32_t n = 0;
    for (uint32_t token = 0; token < demo_.tokens; ++token) {
        const auto experts = route_token(demo_.seed, {me_, token, 0, round}, demo_.topk, demo_.experts);
        for (uint32_t slot = 0; slot < demo_.topk; ++slot, ++n) {
            const TokenId id{me_, token, slot, round};
            const uint32_t target = experts[slot] / experts_per_pe();
            MessageHeader header{me_, token, slot, round, experts[slot], 0, {}};
            header.check = header_check(header);
            std::memcpy(outbox(n), &header, sizeof header);
            fill_bytes(id.key(demo_.seed), outbox(n) + sizeof header, demo_.hidden_bytes);
            messages_[target].push_back(n);
            ++counts_out_[target].messages;
            ++counts_out_[target].by_expert[experts[slot] % experts_per_pe() % std::size(counts_out_->by_expert)];
        }
    }
}

Status Exchange::send(uint32_t round) {
    for (uint32_t i = 0; i < n_pes_; ++i) {
        const uint32_t target = (me_ + i) % n_pes_;
        counts_out_[target].round = round;
        EFA_TRY(lane().put_signal(static_cast<int>(target), &counts_in_[me_], &counts_out_[target], sizeof(Counts),
                                  &counts_signal_[me_], abi::kAmoSignalSet, round + 1));
        for (uint32_t k = 0; k < messages_[target].size(); ++k)
            EFA_TRY(lane().put_signal(static_cast<int>(target), inbox(me_, k), outbox(messages_[target][k]),
                                      sizeof(MessageHeader) + demo_.hidden_bytes, &token_signal_[me_],
                                      abi::kAmoSignalAdd, 1));
    }
    return Status();
}

// Every field and byte of a token that arrived, against the oracle. The expert must be one of ours.
bool Exchange::check_message(uint32_t source, uint32_t round, char* message) {
    MessageHeader header;
    std::memcpy(&header, message, sizeof header);
    run_.checker.token();
    const bool is_sane = header.pe == source && header.round == round && header.token < demo_.tokens &&
                         header.slot < demo_.topk && header.check == header_check(header) &&
                         header.expert / experts_per_pe() == me_;
    if (!run_.checker.holds("the header of a token", is_sane)) return false;
    const TokenId id{source, header.token, header.slot, round};
    const auto experts = route_token(demo_.seed, id, demo_.topk, demo_.experts);
    run_.checker.word("the expert of a token", header.expert, experts[header.slot]);
    fill_bytes(id.key(demo_.seed), expected_.data(), expected_.size());
    run_.checker.bytes("a token", message + sizeof header, expected_.data(), expected_.size());
    return true;
}

// The expert's side: all tokens of one source, checked, transformed and sent home.
Status Exchange::serve(uint32_t source, uint32_t round) {
    const int from = static_cast<int>(source);
    EFA_TRY(run_.pe.wait_until(&counts_signal_[source], Compare::kAtLeast, round + 1, from).with_context("counts"));
    Counts counts;
    std::memcpy(&counts, &counts_in_[source], sizeof counts);
    if (!run_.checker.holds("a counts record", counts.round == round && counts.messages <= messages_max_))
        return Status::error(Code::kProtocol, nullptr, "the counts record of PE %u for round %u is wrong", source,
                             round);
    tokens_seen_[source] += counts.messages;
    EFA_TRY(run_.pe.wait_until(&token_signal_[source], Compare::kAtLeast, tokens_seen_[source], from)
                .with_context("tokens"));
    for (uint32_t k = 0; k < counts.messages; ++k) {
        char* message = inbox(source, k);
        if (!run_.options.in_place) {
            // A signal that the agent applies by counting may come before the sender's completion, and until then SRD
            // may place the token once more: what is changed in the inbox could be overwritten with the old bytes.
            message = workplace(source, k);
            std::memcpy(message, inbox(source, k), sizeof(MessageHeader) + demo_.hidden_bytes);
        }
        if (run_.options.corrupt && me_ == 0 && round == 0 && k == 0) message[sizeof(MessageHeader)] ^= 1;
        if (!check_message(source, round, message)) continue;
        MessageHeader header;
        std::memcpy(&header, message, sizeof header);
        expert_transform(header.expert, message + sizeof header, demo_.hidden_bytes);
        EFA_TRY(lane().put_nbi(from, answer(header.token, header.slot), message + sizeof header, demo_.hidden_bytes));
    }
    EFA_TRY(lane().fence());
    return lane().signal(from, &answer_signal_[me_], abi::kAmoSignalAdd, counts.messages);
}

Status Exchange::collect(uint32_t round) {
    for (uint32_t source = 0; source < n_pes_; ++source) {
        answers_seen_[source] += messages_[source].size();
        EFA_TRY(
            run_.pe
                .wait_until(&answer_signal_[source], Compare::kAtLeast, answers_seen_[source], static_cast<int>(source))
                .with_context("answers"));
        for (const uint32_t n : messages_[source]) {
            const TokenId id{me_, n / demo_.topk, n % demo_.topk, round};
            const auto experts = route_token(demo_.seed, id, demo_.topk, demo_.experts);
            fill_bytes(id.key(demo_.seed), expected_.data(), expected_.size());
            expert_transform(experts[id.slot], expected_.data(), expected_.size());
            run_.checker.bytes("an answer", answer(id.token, id.slot), expected_.data(), expected_.size());
        }
    }
    return Status();
}

// A place is used again only after all earlier uses are complete: quiet here, and the same said by everybody else.
Status Exchange::meet(uint32_t round) {
    EFA_TRY(lane().quiet());
    for (uint32_t pe = 0; pe < n_pes_; ++pe)
        EFA_TRY(lane().signal(static_cast<int>(pe), &done_signal_[me_], abi::kAmoSignalSet, round + 1));
    for (uint32_t pe = 0; pe < n_pes_; ++pe)
        EFA_TRY(run_.pe.wait_until(&done_signal_[pe], Compare::kAtLeast, round + 1, static_cast<int>(pe))
                    .with_context("end of a round"));
    return Status();
}

Status Exchange::round(uint32_t round) {
    stage(round);
    EFA_TRY(send(round));
    for (uint32_t i = 0; i < n_pes_; ++i) EFA_TRY(serve((me_ + i) % n_pes_, round));
    EFA_TRY(collect(round));
    return meet(round);
}

// The application's thread meanwhile: memory that did not exist when the proxy started, written, read and counted in.
Status side_traffic(Run& run) {
    const int n_pes = run.pe.n_pes();
    const int me = run.pe.id();
    EFA_TRY(run.pe.grow(1));
    char* places = nullptr;  // one for each writer
    uint64_t* counter = nullptr;
    EFA_TRY(run.allocate(static_cast<size_t>(n_pes) * kSidePlace, &places));
    EFA_TRY(run.allocate(1, &counter));
    *counter = 0;
    EFA_TRY(run.pe.bootstrap().barrier());
    std::vector<char> sent(kSidePlace), seen(kSidePlace);  // user buffers: registered, not symmetric
    EFA_TRY(run.pe.register_buffer(sent.data(), sent.size()));
    EFA_TRY(run.pe.register_buffer(seen.data(), seen.size()));
    Sequence sequence(run.options.demo.seed ^ mix(static_cast<uint64_t>(me) + 77));
    const uint32_t n_ops = kSideOpsPerRound * run.options.demo.rounds;
    char* place = places + static_cast<size_t>(me) * kSidePlace;
    for (uint32_t i = 0; i < n_ops; ++i) {
        const int target = static_cast<int>(sequence.below(static_cast<uint64_t>(n_pes)));
        const size_t start = sequence.below(64), bytes = 1 + sequence.below(kSidePlace - 64);
        fill_bytes(sequence.next(), sent.data(), bytes);
        EFA_TRY(run.host.put(target, place + start, sent.data(), bytes));
        EFA_TRY(run.host.get(target, place + start, seen.data(), bytes));
        run.checker.bytes("put and get beside the exchange", seen.data(), sent.data(), bytes);
        EFA_TRY(run.host.amo(static_cast<int>(i) % n_pes, counter, {abi::kAmoFetchInc}, nullptr));
    }
    EFA_TRY(run.host.quiet());
    EFA_TRY(run.pe.bootstrap().barrier());
    uint64_t expected = 0;
    for (uint32_t i = 0; i < n_ops; ++i)
        expected += static_cast<int>(i) % n_pes == me ? static_cast<uint64_t>(n_pes) : 0;
    uint64_t total = 0;
    EFA_TRY(run.host.amo(me, counter, {abi::kAmoFetch}, &total));
    run.checker.word("a counter beside the exchange", total, expected);
    EFA_TRY(run.pe.unregister_buffer(sent.data()));
    return run.pe.unregister_buffer(seen.data());
}

}  // namespace

Status demo_exchange(Run& run) {
    const DemoOptions& demo = run.options.demo;
    Exchange exchange(run);
    EFA_TRY(exchange.allocate());
    EFA_TRY(run.on_two_threads([&] { return side_traffic(run); },
                               [&]() -> Status {
                                   for (uint32_t round = 0; round < demo.rounds; ++round)
                                       EFA_TRY(exchange.round(round));
                                   return Status();
                               }));
    EFA_TRY(run.pe.barrier_all());
    return exchange.release();
}

}  // namespace nvshmem_efa::pe
