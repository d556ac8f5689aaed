// SPDX-License-Identifier: Apache-2.0
// The parts of the libibverbs and libefa ABI that we call, in our own declarations: the libraries are opened at run
// time, so that the package builds and installs where rdma-core is not. Only what is exported is used; nothing goes
// through the operation tables inside ibv_context. Sizes and offsets were compared with the headers of rdma-core v65
// (tests/cpp/test_verbs_abi.cpp repeats it where the headers are installed).
#pragma once

#include <cstddef>
#include <cstdint>

namespace nvshmem_efa::verbs {

struct IbvDevice;
struct IbvContext;
struct IbvPd;
struct IbvCq;  // also what efadv_create_cq() returns: an extended CQ begins with the plain one
struct IbvAh;
struct IbvCompCounter;

struct IbvMr {
    IbvContext* context;
    IbvPd* pd;
    void* addr;
    size_t length;
    uint32_t handle;
    uint32_t lkey;
    uint32_t rkey;
};
static_assert(sizeof(IbvMr) == 48 && offsetof(IbvMr, lkey) == 36 && offsetof(IbvMr, rkey) == 40);

struct IbvQp {  // its head; the rest is private to the library
    IbvContext* context;
    void* qp_context;
    IbvPd* pd;
    IbvCq* send_cq;
    IbvCq* recv_cq;
    void* srq;
    uint32_t handle;
    uint32_t qp_num;
};
static_assert(offsetof(IbvQp, qp_num) == 52);

struct IbvDeviceAttr {
    char fw_ver[64];
    uint64_t guids[2];
    uint64_t max_mr_size;
    uint64_t page_size_cap;
    uint32_t vendor_id;
    uint32_t vendor_part_id;
    uint32_t hw_ver;
    int32_t max_qp;
    int32_t max_qp_wr;
    uint32_t device_cap_flags;
    int32_t max_sge;
    int32_t max_sge_rd;
    int32_t max_cq;
    int32_t max_cqe;
    int32_t max_mr;
    int32_t unused[23];  // protection domains, atomics, multicast, SRQ, port count
};
static_assert(sizeof(IbvDeviceAttr) == 232 && offsetof(IbvDeviceAttr, max_qp) == 108);
static_assert(offsetof(IbvDeviceAttr, max_qp_wr) == 112 && offsetof(IbvDeviceAttr, max_cqe) == 132);
static_assert(offsetof(IbvDeviceAttr, max_mr) == 136);

// What the exported ibv_query_port() fills: 48 bytes. The header's own wrapper asks for a longer struct through the
// operation table, which we do not touch.
struct IbvPortAttr {
    uint32_t state;
    uint32_t max_mtu;
    uint32_t active_mtu;
    int32_t gid_tbl_len;
    uint32_t port_cap_flags;
    uint32_t max_msg_sz;  // EFA: the longest SEND
    uint32_t counters[2];
    uint16_t lids[3];
    uint8_t rest[10];
};
static_assert(sizeof(IbvPortAttr) == 48 && offsetof(IbvPortAttr, max_msg_sz) == 20);
inline constexpr uint32_t kPortActive = 4;

struct IbvGid {
    alignas(8) uint8_t raw[16];
};

struct IbvAhAttr {
    IbvGid dgid;
    uint32_t flow_label;
    uint8_t sgid_index;
    uint8_t hop_limit;
    uint8_t traffic_class;
    uint8_t pad;
    uint16_t dlid;
    uint8_t sl;
    uint8_t src_path_bits;
    uint8_t static_rate;
    uint8_t is_global;
    uint8_t port_num;
};
static_assert(sizeof(IbvAhAttr) == 32 && offsetof(IbvAhAttr, dlid) == 24);
static_assert(offsetof(IbvAhAttr, is_global) == 29 && offsetof(IbvAhAttr, port_num) == 30);

struct IbvQpCap {
    uint32_t max_send_wr;
    uint32_t max_recv_wr;
    uint32_t max_send_sge;
    uint32_t max_recv_sge;
    uint32_t max_inline_data;
};

inline constexpr uint32_t kQpTypeDriver = 0xff;
inline constexpr uint32_t kQpInitAttrPd = 1u << 0;
inline constexpr uint32_t kQpInitAttrSendOps = 1u << 6;
inline constexpr uint64_t kSendOpRdmaWrite = 1u << 0;
inline constexpr uint64_t kSendOpRdmaWriteImm = 1u << 1;
inline constexpr uint64_t kSendOpSend = 1u << 2;
inline constexpr uint64_t kSendOpSendImm = 1u << 3;
inline constexpr uint64_t kSendOpRdmaRead = 1u << 4;

struct IbvQpInitAttrEx {
    void* qp_context;
    IbvCq* send_cq;
    IbvCq* recv_cq;
    void* srq;
    IbvQpCap cap;
    uint32_t qp_type;
    int32_t sq_sig_all;
    uint32_t comp_mask;
    IbvPd* pd;
    void* xrcd;
    uint32_t create_flags;
    uint16_t max_tso_header;
    void* rwq_ind_tbl;
    uint64_t rx_hash_conf[3];
    uint32_t source_qpn;
    uint64_t send_ops_flags;
};
static_assert(sizeof(IbvQpInitAttrEx) == 136 && offsetof(IbvQpInitAttrEx, cap) == 32);
static_assert(offsetof(IbvQpInitAttrEx, qp_type) == 52 && offsetof(IbvQpInitAttrEx, comp_mask) == 60);
static_assert(offsetof(IbvQpInitAttrEx, pd) == 64 && offsetof(IbvQpInitAttrEx, send_ops_flags) == 128);

inline constexpr uint32_t kQpStateReset = 0, kQpStateInit = 1, kQpStateRtr = 2, kQpStateRts = 3;
inline constexpr int kQpMaskState = 1 << 0;
inline constexpr int kQpMaskPkeyIndex = 1 << 4;
inline constexpr int kQpMaskPort = 1 << 5;
inline constexpr int kQpMaskQkey = 1 << 6;
inline constexpr int kQpMaskRnrRetry = 1 << 11;
inline constexpr int kQpMaskSqPsn = 1 << 16;

struct IbvQpAttr {
    uint32_t qp_state;
    uint32_t cur_qp_state;
    uint32_t path_mtu;
    uint32_t path_mig_state;
    uint32_t qkey;
    uint32_t rq_psn;
    uint32_t sq_psn;
    uint32_t dest_qp_num;
    uint32_t qp_access_flags;
    IbvQpCap cap;
    IbvAhAttr ah_attr;
    IbvAhAttr alt_ah_attr;
    uint16_t pkey_index;
    uint16_t alt_pkey_index;
    uint8_t en_sqd_async_notify;
    uint8_t sq_draining;
    uint8_t max_rd_atomic;
    uint8_t max_dest_rd_atomic;
    uint8_t min_rnr_timer;
    uint8_t port_num;
    uint8_t timeout;
    uint8_t retry_cnt;
    uint8_t rnr_retry;
    uint8_t alt_port_num;
    uint8_t alt_timeout;
    uint32_t rate_limit;
};
static_assert(sizeof(IbvQpAttr) == 144 && offsetof(IbvQpAttr, qkey) == 16 && offsetof(IbvQpAttr, sq_psn) == 24);
static_assert(offsetof(IbvQpAttr, ah_attr) == 56 && offsetof(IbvQpAttr, pkey_index) == 120);
static_assert(offsetof(IbvQpAttr, port_num) == 129 && offsetof(IbvQpAttr, rnr_retry) == 132);

struct IbvCqInitAttrEx {
    uint32_t cqe;
    void* cq_context;
    void* channel;
    uint32_t comp_vector;
    uint64_t wc_flags;
    uint32_t comp_mask;
    uint32_t flags;
    void* parent_domain;
};
static_assert(sizeof(IbvCqInitAttrEx) == 56 && offsetof(IbvCqInitAttrEx, wc_flags) == 32);

inline constexpr int kAccessLocalWriteBit = 1 << 0;
inline constexpr int kAccessRemoteWriteBit = 1 << 1;
inline constexpr int kAccessRemoteReadBit = 1 << 2;

inline constexpr uint32_t kDataInOrderReturnCaps = 1u << 0;
inline constexpr int kDataInOrderAligned128 = 1 << 1;
inline constexpr uint32_t kOpcodeRdmaWrite = 0;  // enum ibv_wr_opcode

// ---- completion counters, IBVERBS_1.18 ----

struct IbvCompCounterCaps {
    uint64_t max_value;
    uint32_t max_counters;
    uint32_t supported_ops;  // kAttach* bits
};
static_assert(sizeof(IbvCompCounterCaps) == 16);

struct IbvCompCounterInitAttr {
    uint32_t comp_mask;
    uint32_t type;  // 0: counts work requests
    uint32_t flags;
};
static_assert(sizeof(IbvCompCounterInitAttr) == 12);

struct IbvAttachCompCounterAttr {
    uint32_t comp_mask;
    uint32_t op_mask;
};
static_assert(sizeof(IbvAttachCompCounterAttr) == 8);
// Not the order of our own CounterOp: the library pairs each operation with its remote side.
inline constexpr uint32_t kAttachSend = 1u << 0;
inline constexpr uint32_t kAttachRecv = 1u << 1;
inline constexpr uint32_t kAttachRead = 1u << 2;
inline constexpr uint32_t kAttachRemoteRead = 1u << 3;
inline constexpr uint32_t kAttachWrite = 1u << 4;
inline constexpr uint32_t kAttachRemoteWrite = 1u << 5;

// ---- libefa ----

inline constexpr uint32_t kEfaCapRdmaRead = 1u << 0;
inline constexpr uint32_t kEfaCapRnrRetry = 1u << 1;
inline constexpr uint32_t kEfaCapCqSgid = 1u << 2;
inline constexpr uint32_t kEfaCapRdmaWrite = 1u << 3;
inline constexpr uint32_t kEfaCapUnsolicited = 1u << 4;
inline constexpr uint32_t kEfaCapCqExtMem = 1u << 5;
inline constexpr uint32_t kEfaCapCompCounter = 1u << 6;

struct EfaDeviceAttr {
    uint64_t comp_mask;
    uint32_t max_sq_wr;
    uint32_t max_rq_wr;
    uint16_t max_sq_sge;
    uint16_t max_rq_sge;
    uint16_t inline_buf_size;
    uint16_t inline_buf_size_ex;  // v63 and newer; with an older kernel it repeats inline_buf_size
    uint32_t device_caps;
    uint32_t max_rdma_size;
};
static_assert(sizeof(EfaDeviceAttr) == 32 && offsetof(EfaDeviceAttr, inline_buf_size_ex) == 22);
static_assert(offsetof(EfaDeviceAttr, device_caps) == 24 && offsetof(EfaDeviceAttr, max_rdma_size) == 28);

struct EfaSqDepthAttr {
    uint64_t comp_mask;
    uint32_t flags;
    uint32_t max_send_sge;
    uint32_t max_rdma_sge;
    uint32_t max_inline_data;
};
static_assert(sizeof(EfaSqDepthAttr) == 24);

struct EfaRqDepthAttr {
    uint64_t comp_mask;
    uint32_t max_recv_sge;
};
static_assert(sizeof(EfaRqDepthAttr) == 16);

struct EfaAhAttr {
    uint64_t comp_mask;
    uint16_t ahn;
    uint8_t reserved[6];
};
static_assert(sizeof(EfaAhAttr) == 16);

inline constexpr uint32_t kEfaDriverQpSrd = 0;
inline constexpr uint16_t kEfaQpUnsolicited = 1u << 0;
inline constexpr uint16_t kEfaQpInlineWrite = 1u << 1;

struct EfaQpInitAttr {
    uint64_t comp_mask;
    uint32_t driver_qp_type;
    uint16_t flags;
    uint8_t sl;
    uint8_t reserved;
    uint64_t wr_flags;
};
static_assert(sizeof(EfaQpInitAttr) == 24 && offsetof(EfaQpInitAttr, flags) == 12);

inline constexpr uint16_t kEfaWqCap64BitReqId = 1u << 0;

struct EfaWqAttr {
    uint64_t comp_mask;
    uint8_t* buffer;
    uint32_t entry_size;
    uint32_t num_entries;
    uint32_t* doorbell;
    uint32_t max_batch;  // entries; kEfaNoBatchLimit, or at most num_entries - 1 on devices with a minimum queue
    uint16_t caps;       // v65 and newer
    uint8_t reserved[2];
};
inline constexpr uint32_t kEfaNoBatchLimit = 0xffff;
static_assert(sizeof(EfaWqAttr) == 40 && offsetof(EfaWqAttr, doorbell) == 24);
static_assert(offsetof(EfaWqAttr, max_batch) == 32 && offsetof(EfaWqAttr, caps) == 36);

inline constexpr uint64_t kEfaWcSgid = 1u << 0;
inline constexpr uint64_t kEfaCqExtMemDmabuf = 1u << 0;

struct EfaCqInitAttr {
    uint64_t comp_mask;
    uint64_t wc_flags;
    uint64_t flags;  // v59 and newer, as all that follows
    uint8_t* ext_buffer;
    uint64_t ext_length;
    uint64_t ext_offset;
    int32_t ext_fd;
    uint8_t reserved[4];
};
static_assert(sizeof(EfaCqInitAttr) == 56 && offsetof(EfaCqInitAttr, ext_fd) == 48);

struct EfaCqAttr {
    uint64_t comp_mask;
    uint8_t* buffer;
    uint32_t entry_size;
    uint32_t num_entries;
    uint32_t* doorbell;  // v60 and newer
};
static_assert(sizeof(EfaCqAttr) == 32 && offsetof(EfaCqAttr, doorbell) == 24);

inline constexpr uint8_t kEfaMemoryVa = 0, kEfaMemoryDmabuf = 1;
inline constexpr uint32_t kEfaCounterExtCompletions = 1u << 0;
inline constexpr uint32_t kEfaCounterExtErrors = 1u << 1;

struct EfaMemoryLocation {
    uint8_t* ptr;
    uint64_t offset;
    int32_t fd;
    uint32_t reserved0;
    uint8_t type;
    uint8_t reserved1[7];
};
static_assert(sizeof(EfaMemoryLocation) == 32 && offsetof(EfaMemoryLocation, type) == 24);

struct EfaCompCounterInitAttr {
    uint64_t comp_mask;
    uint32_t flags;
    uint32_t reserved;
    EfaMemoryLocation completions;
    EfaMemoryLocation errors;
};
static_assert(sizeof(EfaCompCounterInitAttr) == 80 && offsetof(EfaCompCounterInitAttr, errors) == 48);

}  // namespace nvshmem_efa::verbs
