// SPDX-License-Identifier: Apache-2.0
// SHA-256 and HMAC against published vectors, and the handshake against liars.
#include "soft_efa/auth.h"

#include <algorithm>
#include <string>

#include "check.h"
#include "soft_efa/auth_handshake.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;

namespace {

std::string hex(const Digest& digest) {
    std::string text;
    char two[3];
    for (uint8_t byte : digest) {
        std::snprintf(two, sizeof two, "%02x", byte);
        text += two;
    }
    return text;
}

std::string sha(const std::string& text) { return hex(sha256(text.data(), text.size())); }

std::string hmac(const std::string& key, const std::string& data) {
    HmacSha256 mac(key.data(), key.size());
    mac.update(data.data(), data.size());
    return hex(mac.finish());
}

JobSecret secret_of(uint8_t byte) {
    JobSecret secret;
    std::memset(secret.bytes, byte, sizeof secret.bytes);
    return secret;
}

constexpr uint64_t kDialler = 0x1111, kAcceptor = 0x2222;

struct Pair {
    Handshake dialler;
    Handshake acceptor;
    Pair(uint8_t dialler_secret, uint8_t acceptor_secret)
        : dialler(true, secret_of(dialler_secret), kDialler, kAcceptor),
          acceptor(false, secret_of(acceptor_secret), kAcceptor, 0) {}
};

ControlMessage answer(Handshake& side, const ControlMessage& message) {
    ControlMessage reply;
    bool has_reply = false;
    CHECK_OK(side.on_message(message, &reply, &has_reply));
    CHECK(has_reply);
    return reply;
}

}  // namespace

TEST(sha256_of_the_fips_180_examples) {
    CHECK_EQ(sha("abc"), std::string("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    CHECK_EQ(sha(""), std::string("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
    CHECK_EQ(sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
             std::string("248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"));
    CHECK_EQ(sha("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
             std::string("cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"));
    CHECK_EQ(sha(std::string(1000000, 'a')),
             std::string("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
}

TEST(sha256_around_the_block_boundary) {
    // Reference values from another implementation (Python's hashlib) for n times 'x'.
    const struct {
        size_t count;
        const char* digest;
    } cases[] = {
        {55, "d5e285683cd4efc02d021a5c62014694958901005d6f71e89e0989fac77e4072"},
        {56, "04c26261370ee7541549d16dee320c723e3fd14671e66a099afe0a377c16888e"},
        {63, "75220b47218278e656f2013bb8f0c455a25eaf01e86c64924e9d48d89776d6f2"},
        {64, "7ce100971f64e7001e8fe5a51973ecdfe1ced42befe7ee8d5fd6219506b5393c"},
        {65, "9537c5fdf120482f7d58d25e9ed583f52c02b4e304ea814db1633ad565aed7e9"},
        {119, "000b48d4edf0fa7bee3c6236ecd2785baa5db4eeb8bb54341b029e0d9fa5fb0c"},
        {120, "13f05a0b594787f5ecd315edc96141bd3243203d1b7d4f0836f37308b276ba98"},
        {128, "24da1b81d0b16df6428eee73c69fcb2a93c76bc6df706f0c6670fe6bfe800464"},
    };
    for (const auto& test : cases) CHECK_EQ(sha(std::string(test.count, 'x')), std::string(test.digest));
}

TEST(sha256_in_pieces_equals_sha256_at_once) {
    const std::string text(300, 'q');
    for (size_t piece = 1; piece < 130; ++piece) {
        Sha256 hash;
        for (size_t at = 0; at < text.size(); at += piece) hash.update(text.data() + at, std::min(piece, text.size() - at));
        CHECK_EQ(hex(hash.finish()), sha(text));
    }
}

TEST(hmac_sha256_of_rfc_4231) {
    CHECK_EQ(hmac(std::string(20, '\x0b'), "Hi There"),
             std::string("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"));
    CHECK_EQ(hmac("Jefe", "what do ya want for nothing?"),
             std::string("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
    CHECK_EQ(hmac(std::string(20, '\xaa'), std::string(50, '\xdd')),
             std::string("773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"));
    std::string counting;
    for (char c = 1; c <= 25; ++c) counting += c;
    CHECK_EQ(hmac(counting, std::string(50, '\xcd')),
             std::string("82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"));
    CHECK_EQ(hmac(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First"),
             std::string("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"));
    CHECK_EQ(hmac(std::string(131, '\xaa'),
                  "This is a test using a larger than block-size key and a larger than block-size data. The key needs to "
                  "be hashed before being used by the HMAC algorithm."),
             std::string("9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"));
}

TEST(equality_sees_a_difference_in_every_byte) {
    uint8_t left[32] = {}, right[32] = {};
    CHECK(equal_constant_time(left, right, 32));
    for (int i = 0; i < 32; ++i) {
        right[i] = 0x80;
        CHECK(!equal_constant_time(left, right, 32));
        right[i] = 0;
    }
}

TEST(random_bytes_differ) {
    uint8_t first[32], second[32];
    CHECK_OK(random_bytes(first, sizeof first));
    CHECK_OK(random_bytes(second, sizeof second));
    CHECK(std::memcmp(first, second, sizeof first) != 0);
}

TEST(two_that_know_the_secret_prove_it_to_each_other) {
    Pair pair(7, 7);
    ControlMessage hello, none;
    bool has_reply;
    CHECK_OK(pair.dialler.begin(&hello));
    const ControlMessage challenge = answer(pair.acceptor, hello);
    CHECK(!pair.acceptor.proven());
    const ControlMessage proof = answer(pair.dialler, challenge);
    CHECK_OK(pair.acceptor.on_message(proof, &none, &has_reply));
    CHECK(!has_reply);
    CHECK(pair.acceptor.proven());
    CHECK_EQ(pair.acceptor.peer(), kDialler);
    CHECK(!pair.dialler.proven());
    CHECK_OK(pair.dialler.on_message(pair.acceptor.accept(), &none, &has_reply));
    CHECK(pair.dialler.proven());
}

TEST(a_dialler_with_a_wrong_secret_is_refused_and_told_why) {
    Pair pair(7, 8);
    ControlMessage hello, reply;
    bool has_reply;
    CHECK_OK(pair.dialler.begin(&hello));
    const ControlMessage proof = answer(pair.dialler, answer(pair.acceptor, hello));
    CHECK_FAILS(pair.acceptor.on_message(proof, &reply, &has_reply), Code::kAuth, "does not know this job's secret");
    CHECK(has_reply && reply.type == ControlType::kRefuse && reply.reason == RefuseReason::kSecret);
    CHECK(!pair.acceptor.proven());
    CHECK_FAILS(pair.dialler.on_message(reply, &reply, &has_reply), Code::kAuth, "hint:");
    CHECK(!pair.dialler.proven());
}

TEST(an_acceptor_that_accepts_without_the_secret_is_not_believed) {
    Pair pair(7, 8);
    ControlMessage hello, reply;
    bool has_reply;
    CHECK_OK(pair.dialler.begin(&hello));
    answer(pair.dialler, answer(pair.acceptor, hello));
    CHECK_FAILS(pair.dialler.on_message(pair.acceptor.accept(), &reply, &has_reply), Code::kAuth, "secret");
    CHECK(!pair.dialler.proven());
}

TEST(a_proof_sent_back_as_the_acceptors_own_is_not_believed) {
    Pair pair(7, 7);
    ControlMessage hello, reply;
    bool has_reply;
    CHECK_OK(pair.dialler.begin(&hello));
    ControlMessage proof = answer(pair.dialler, answer(pair.acceptor, hello));
    proof.type = ControlType::kAccept;
    std::swap(proof.from_process, proof.to_process);
    CHECK_FAILS(pair.dialler.on_message(proof, &reply, &has_reply), Code::kAuth, "secret");
}

TEST(a_proof_recorded_earlier_is_not_believed) {
    Pair first(7, 7), second(7, 7);
    ControlMessage hello, reply;
    bool has_reply;
    CHECK_OK(first.dialler.begin(&hello));
    const ControlMessage proof = answer(first.dialler, answer(first.acceptor, hello));
    answer(second.acceptor, hello);  // the same first bytes, but a fresh challenge
    CHECK_FAILS(second.acceptor.on_message(proof, &reply, &has_reply), Code::kAuth, "secret");
}

TEST(messages_out_of_turn_are_refused) {
    Pair pair(7, 7);
    ControlMessage hello, reply;
    bool has_reply;
    CHECK_OK(pair.dialler.begin(&hello));
    CHECK_FAILS(pair.acceptor.on_message(pair.acceptor.accept(), &reply, &has_reply), Code::kProtocol, "was due");
    answer(pair.acceptor, hello);
    CHECK_FAILS(pair.acceptor.on_message(hello, &reply, &has_reply), Code::kProtocol, "was due");
}

TEST(a_hello_for_another_process_is_refused) {
    Pair pair(7, 7);
    ControlMessage hello, reply;
    bool has_reply;
    CHECK_OK(pair.dialler.begin(&hello));
    for (int wrong = 0; wrong < 3; ++wrong) {
        ControlMessage bad = hello;
        if (wrong == 0) bad.to_process = 0x3333;
        if (wrong == 1) bad.from_process = 0;
        if (wrong == 2) bad.from_process = kAcceptor;  // ourselves
        CHECK_FAILS(pair.acceptor.on_message(bad, &reply, &has_reply), Code::kProtocol, "process");
        CHECK(has_reply && reply.reason == RefuseReason::kNotMe);
    }
}

TEST(bytes_that_are_no_message_are_named) {
    ControlMessage message, parsed;
    CHECK_OK(parse_control_message(&message, sizeof message, &parsed));
    CHECK_FAILS(parse_control_message("GET / HTTP/1.1", 14, &parsed), Code::kProtocol, "not a message");
    CHECK_FAILS(parse_control_message("", 0, &parsed), Code::kProtocol, "not a message");
    CHECK_FAILS(parse_control_message(&message, 64, &parsed), Code::kProtocol, "64 bytes instead of 128");
    message.version = 9;
    CHECK_FAILS(parse_control_message(&message, sizeof message, &parsed), Code::kMismatch, "version 9, this process 1");
    message.version = kWireVersion;
    for (int type : {0, 9, 255}) {
        message.type = static_cast<ControlType>(type);
        CHECK_FAILS(parse_control_message(&message, sizeof message, &parsed), Code::kProtocol, "type");
    }
}

TEST(every_refusal_is_an_error_with_a_hint) {
    Handshake side(true, secret_of(1), kDialler, kAcceptor);
    const struct {
        RefuseReason reason;
        Code code;
    } cases[] = {{RefuseReason::kSecret, Code::kAuth},       {RefuseReason::kVersion, Code::kMismatch},
                 {RefuseReason::kNoMemory, Code::kResource}, {RefuseReason::kNotMe, Code::kPeer},
                 {RefuseReason::kCutOff, Code::kPeer},       {RefuseReason::kFd, Code::kProtocol},
                       {static_cast<RefuseReason>(200), Code::kProtocol}};
    for (const auto& test : cases) CHECK_FAILS(refusal_error(side.refuse(test.reason)), test.code, "hint:");
}

TEST_MAIN()
