// SPDX-License-Identifier: Apache-2.0
// Our declarations of the libibverbs and libefa ABI against the real headers, where they are installed.
#include "fabric/verbs_abi.h"

#include <utility>

#include "check.h"

#if defined(HAVE_RDMA_CORE_HEADERS)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-enum-enum-conversion"
#include <infiniband/efadv.h>
#include <infiniband/verbs.h>
#pragma GCC diagnostic pop

namespace abi = nvshmem_efa::verbs;

#define SAME_SIZE(ours, theirs) CHECK_EQ(sizeof(ours), sizeof(theirs))
#define SAME_PLACE(ours, our_field, theirs, their_field)                                                  \
    do {                                                                                                  \
        CHECK_EQ(offsetof(ours, our_field), offsetof(theirs, their_field));                                \
        CHECK_EQ(sizeof(std::declval<ours>().our_field), sizeof(std::declval<theirs>().their_field));      \
    } while (0)
#define SAME_VALUE(ours, theirs) CHECK_EQ(static_cast<uint64_t>(ours), static_cast<uint64_t>(theirs))

TEST(structs_of_libibverbs_lie_as_in_the_header) {
    SAME_SIZE(abi::IbvMr, ibv_mr);
    SAME_PLACE(abi::IbvMr, lkey, ibv_mr, lkey);
    SAME_PLACE(abi::IbvMr, rkey, ibv_mr, rkey);
    SAME_PLACE(abi::IbvQp, qp_num, ibv_qp, qp_num);
    SAME_SIZE(abi::IbvDeviceAttr, ibv_device_attr);
    SAME_PLACE(abi::IbvDeviceAttr, max_qp, ibv_device_attr, max_qp);
    SAME_PLACE(abi::IbvDeviceAttr, max_qp_wr, ibv_device_attr, max_qp_wr);
    SAME_PLACE(abi::IbvDeviceAttr, max_cqe, ibv_device_attr, max_cqe);
    SAME_PLACE(abi::IbvDeviceAttr, max_mr, ibv_device_attr, max_mr);
    SAME_PLACE(abi::IbvPortAttr, state, ibv_port_attr, state);
    SAME_PLACE(abi::IbvPortAttr, max_msg_sz, ibv_port_attr, max_msg_sz);
    CHECK_EQ(sizeof(abi::IbvPortAttr), offsetof(ibv_port_attr, port_cap_flags2));  // where the exported call stops
    SAME_SIZE(abi::IbvGid, ibv_gid);
    SAME_SIZE(abi::IbvAhAttr, ibv_ah_attr);
    SAME_PLACE(abi::IbvAhAttr, dgid, ibv_ah_attr, grh.dgid);
    SAME_PLACE(abi::IbvAhAttr, is_global, ibv_ah_attr, is_global);
    SAME_PLACE(abi::IbvAhAttr, port_num, ibv_ah_attr, port_num);
    SAME_SIZE(abi::IbvQpInitAttrEx, ibv_qp_init_attr_ex);
    SAME_PLACE(abi::IbvQpInitAttrEx, send_cq, ibv_qp_init_attr_ex, send_cq);
    SAME_PLACE(abi::IbvQpInitAttrEx, recv_cq, ibv_qp_init_attr_ex, recv_cq);
    SAME_PLACE(abi::IbvQpInitAttrEx, cap, ibv_qp_init_attr_ex, cap);
    SAME_PLACE(abi::IbvQpInitAttrEx, cap.max_inline_data, ibv_qp_init_attr_ex, cap.max_inline_data);
    SAME_PLACE(abi::IbvQpInitAttrEx, qp_type, ibv_qp_init_attr_ex, qp_type);
    SAME_PLACE(abi::IbvQpInitAttrEx, comp_mask, ibv_qp_init_attr_ex, comp_mask);
    SAME_PLACE(abi::IbvQpInitAttrEx, pd, ibv_qp_init_attr_ex, pd);
    SAME_PLACE(abi::IbvQpInitAttrEx, send_ops_flags, ibv_qp_init_attr_ex, send_ops_flags);
    SAME_SIZE(abi::IbvQpAttr, ibv_qp_attr);
    SAME_PLACE(abi::IbvQpAttr, qp_state, ibv_qp_attr, qp_state);
    SAME_PLACE(abi::IbvQpAttr, qkey, ibv_qp_attr, qkey);
    SAME_PLACE(abi::IbvQpAttr, sq_psn, ibv_qp_attr, sq_psn);
    SAME_PLACE(abi::IbvQpAttr, pkey_index, ibv_qp_attr, pkey_index);
    SAME_PLACE(abi::IbvQpAttr, port_num, ibv_qp_attr, port_num);
    SAME_PLACE(abi::IbvQpAttr, rnr_retry, ibv_qp_attr, rnr_retry);
    SAME_SIZE(abi::IbvCqInitAttrEx, ibv_cq_init_attr_ex);
    SAME_PLACE(abi::IbvCqInitAttrEx, cqe, ibv_cq_init_attr_ex, cqe);
    SAME_PLACE(abi::IbvCqInitAttrEx, wc_flags, ibv_cq_init_attr_ex, wc_flags);
}

TEST(structs_of_the_counters_lie_as_in_the_headers) {
    SAME_SIZE(abi::IbvCompCounterCaps, ibv_comp_cntr_caps);
    SAME_PLACE(abi::IbvCompCounterCaps, max_counters, ibv_comp_cntr_caps, max_counters);
    SAME_PLACE(abi::IbvCompCounterCaps, supported_ops, ibv_comp_cntr_caps, supported_qp_attach_ops);
    SAME_SIZE(abi::IbvCompCounterInitAttr, ibv_comp_cntr_init_attr);
    SAME_PLACE(abi::IbvCompCounterInitAttr, type, ibv_comp_cntr_init_attr, type);
    SAME_SIZE(abi::IbvAttachCompCounterAttr, ibv_qp_attach_comp_cntr_attr);
    SAME_PLACE(abi::IbvAttachCompCounterAttr, op_mask, ibv_qp_attach_comp_cntr_attr, op_mask);
    SAME_SIZE(abi::EfaMemoryLocation, efadv_memory_location);
    SAME_PLACE(abi::EfaMemoryLocation, ptr, efadv_memory_location, ptr);
    SAME_PLACE(abi::EfaMemoryLocation, offset, efadv_memory_location, dmabuf.offset);
    SAME_PLACE(abi::EfaMemoryLocation, fd, efadv_memory_location, dmabuf.fd);
    SAME_PLACE(abi::EfaMemoryLocation, type, efadv_memory_location, type);
    SAME_SIZE(abi::EfaCompCounterInitAttr, efadv_comp_cntr_init_attr);
    SAME_PLACE(abi::EfaCompCounterInitAttr, flags, efadv_comp_cntr_init_attr, flags);
    SAME_PLACE(abi::EfaCompCounterInitAttr, completions, efadv_comp_cntr_init_attr, comp_cntr_ext_mem);
    SAME_PLACE(abi::EfaCompCounterInitAttr, errors, efadv_comp_cntr_init_attr, err_cntr_ext_mem);
}

TEST(structs_of_libefa_lie_as_in_the_header) {
    SAME_SIZE(abi::EfaDeviceAttr, efadv_device_attr);
    SAME_PLACE(abi::EfaDeviceAttr, max_sq_wr, efadv_device_attr, max_sq_wr);
    SAME_PLACE(abi::EfaDeviceAttr, max_rq_wr, efadv_device_attr, max_rq_wr);
    SAME_PLACE(abi::EfaDeviceAttr, max_sq_sge, efadv_device_attr, max_sq_sge);
    SAME_PLACE(abi::EfaDeviceAttr, inline_buf_size, efadv_device_attr, inline_buf_size);
    SAME_PLACE(abi::EfaDeviceAttr, inline_buf_size_ex, efadv_device_attr, inline_buf_size_ex);
    SAME_PLACE(abi::EfaDeviceAttr, device_caps, efadv_device_attr, device_caps);
    SAME_PLACE(abi::EfaDeviceAttr, max_rdma_size, efadv_device_attr, max_rdma_size);
    SAME_SIZE(abi::EfaSqDepthAttr, efadv_sq_depth_attr);
    SAME_PLACE(abi::EfaSqDepthAttr, max_inline_data, efadv_sq_depth_attr, max_inline_data);
    SAME_SIZE(abi::EfaRqDepthAttr, efadv_rq_depth_attr);
    SAME_PLACE(abi::EfaRqDepthAttr, max_recv_sge, efadv_rq_depth_attr, max_recv_sge);
    SAME_SIZE(abi::EfaAhAttr, efadv_ah_attr);
    SAME_PLACE(abi::EfaAhAttr, ahn, efadv_ah_attr, ahn);
    SAME_SIZE(abi::EfaQpInitAttr, efadv_qp_init_attr);
    SAME_PLACE(abi::EfaQpInitAttr, driver_qp_type, efadv_qp_init_attr, driver_qp_type);
    SAME_PLACE(abi::EfaQpInitAttr, flags, efadv_qp_init_attr, flags);
    SAME_PLACE(abi::EfaQpInitAttr, sl, efadv_qp_init_attr, sl);
    SAME_SIZE(abi::EfaWqAttr, efadv_wq_attr);
    SAME_PLACE(abi::EfaWqAttr, buffer, efadv_wq_attr, buffer);
    SAME_PLACE(abi::EfaWqAttr, entry_size, efadv_wq_attr, entry_size);
    SAME_PLACE(abi::EfaWqAttr, num_entries, efadv_wq_attr, num_entries);
    SAME_PLACE(abi::EfaWqAttr, doorbell, efadv_wq_attr, doorbell);
    SAME_PLACE(abi::EfaWqAttr, max_batch, efadv_wq_attr, max_batch);
    SAME_PLACE(abi::EfaWqAttr, caps, efadv_wq_attr, caps);
    SAME_SIZE(abi::EfaCqInitAttr, efadv_cq_init_attr);
    SAME_PLACE(abi::EfaCqInitAttr, wc_flags, efadv_cq_init_attr, wc_flags);
    SAME_PLACE(abi::EfaCqInitAttr, flags, efadv_cq_init_attr, flags);
    SAME_PLACE(abi::EfaCqInitAttr, ext_buffer, efadv_cq_init_attr, ext_mem_dmabuf.buffer);
    SAME_PLACE(abi::EfaCqInitAttr, ext_length, efadv_cq_init_attr, ext_mem_dmabuf.length);
    SAME_PLACE(abi::EfaCqInitAttr, ext_offset, efadv_cq_init_attr, ext_mem_dmabuf.offset);
    SAME_PLACE(abi::EfaCqInitAttr, ext_fd, efadv_cq_init_attr, ext_mem_dmabuf.fd);
    SAME_SIZE(abi::EfaCqAttr, efadv_cq_attr);
    SAME_PLACE(abi::EfaCqAttr, buffer, efadv_cq_attr, buffer);
    SAME_PLACE(abi::EfaCqAttr, entry_size, efadv_cq_attr, entry_size);
    SAME_PLACE(abi::EfaCqAttr, num_entries, efadv_cq_attr, num_entries);
}

TEST(constants_have_the_values_of_the_headers) {
    SAME_VALUE(abi::kPortActive, IBV_PORT_ACTIVE);
    SAME_VALUE(abi::kQpTypeDriver, IBV_QPT_DRIVER);
    SAME_VALUE(abi::kQpInitAttrPd, IBV_QP_INIT_ATTR_PD);
    SAME_VALUE(abi::kQpInitAttrSendOps, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS);
    SAME_VALUE(abi::kSendOpRdmaWrite, IBV_QP_EX_WITH_RDMA_WRITE);
    SAME_VALUE(abi::kSendOpRdmaWriteImm, IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM);
    SAME_VALUE(abi::kSendOpSend, IBV_QP_EX_WITH_SEND);
    SAME_VALUE(abi::kSendOpSendImm, IBV_QP_EX_WITH_SEND_WITH_IMM);
    SAME_VALUE(abi::kSendOpRdmaRead, IBV_QP_EX_WITH_RDMA_READ);
    SAME_VALUE(abi::kQpStateReset, IBV_QPS_RESET);
    SAME_VALUE(abi::kQpStateInit, IBV_QPS_INIT);
    SAME_VALUE(abi::kQpStateRtr, IBV_QPS_RTR);
    SAME_VALUE(abi::kQpStateRts, IBV_QPS_RTS);
    SAME_VALUE(abi::kQpMaskState, IBV_QP_STATE);
    SAME_VALUE(abi::kQpMaskPkeyIndex, IBV_QP_PKEY_INDEX);
    SAME_VALUE(abi::kQpMaskPort, IBV_QP_PORT);
    SAME_VALUE(abi::kQpMaskQkey, IBV_QP_QKEY);
    SAME_VALUE(abi::kQpMaskRnrRetry, IBV_QP_RNR_RETRY);
    SAME_VALUE(abi::kQpMaskSqPsn, IBV_QP_SQ_PSN);
    SAME_VALUE(abi::kAccessLocalWriteBit, IBV_ACCESS_LOCAL_WRITE);
    SAME_VALUE(abi::kAccessRemoteWriteBit, IBV_ACCESS_REMOTE_WRITE);
    SAME_VALUE(abi::kAccessRemoteReadBit, IBV_ACCESS_REMOTE_READ);
    SAME_VALUE(abi::kDataInOrderReturnCaps, IBV_QUERY_QP_DATA_IN_ORDER_RETURN_CAPS);
    SAME_VALUE(abi::kDataInOrderAligned128, IBV_QUERY_QP_DATA_IN_ORDER_ALIGNED_128_BYTES);
    SAME_VALUE(abi::kOpcodeRdmaWrite, IBV_WR_RDMA_WRITE);
    SAME_VALUE(abi::kAttachSend, IBV_QP_ATTACH_COMP_CNTR_OP_SEND);
    SAME_VALUE(abi::kAttachRecv, IBV_QP_ATTACH_COMP_CNTR_OP_RECV);
    SAME_VALUE(abi::kAttachRead, IBV_QP_ATTACH_COMP_CNTR_OP_RDMA_READ);
    SAME_VALUE(abi::kAttachRemoteRead, IBV_QP_ATTACH_COMP_CNTR_OP_REMOTE_RDMA_READ);
    SAME_VALUE(abi::kAttachWrite, IBV_QP_ATTACH_COMP_CNTR_OP_RDMA_WRITE);
    SAME_VALUE(abi::kAttachRemoteWrite, IBV_QP_ATTACH_COMP_CNTR_OP_REMOTE_RDMA_WRITE);
    SAME_VALUE(abi::kEfaCapRdmaRead, EFADV_DEVICE_ATTR_CAPS_RDMA_READ);
    SAME_VALUE(abi::kEfaCapRnrRetry, EFADV_DEVICE_ATTR_CAPS_RNR_RETRY);
    SAME_VALUE(abi::kEfaCapCqSgid, EFADV_DEVICE_ATTR_CAPS_CQ_WITH_SGID);
    SAME_VALUE(abi::kEfaCapRdmaWrite, EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE);
    SAME_VALUE(abi::kEfaCapUnsolicited, EFADV_DEVICE_ATTR_CAPS_UNSOLICITED_WRITE_RECV);
    SAME_VALUE(abi::kEfaCapCqExtMem, EFADV_DEVICE_ATTR_CAPS_CQ_WITH_EXT_MEM_DMABUF);
    SAME_VALUE(abi::kEfaCapCompCounter, EFADV_DEVICE_ATTR_CAPS_COMP_CNTR);
    SAME_VALUE(abi::kEfaDriverQpSrd, EFADV_QP_DRIVER_TYPE_SRD);
    SAME_VALUE(abi::kEfaQpUnsolicited, EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV);
    SAME_VALUE(abi::kEfaQpInlineWrite, EFADV_QP_FLAGS_INLINE_WRITE);
    SAME_VALUE(abi::kEfaWqCap64BitReqId, EFADV_WQ_CAPS_64_BIT_REQ_ID);
    SAME_VALUE(abi::kEfaWcSgid, EFADV_WC_EX_WITH_SGID);
    SAME_VALUE(abi::kEfaCqExtMemDmabuf, EFADV_CQ_INIT_FLAGS_EXT_MEM_DMABUF);
    SAME_VALUE(abi::kEfaMemoryVa, EFADV_MEMORY_LOCATION_VA);
    SAME_VALUE(abi::kEfaMemoryDmabuf, EFADV_MEMORY_LOCATION_DMABUF);
    SAME_VALUE(abi::kEfaCounterExtCompletions, EFADV_COMP_CNTR_INIT_WITH_COMP_EXTERNAL_MEM);
    SAME_VALUE(abi::kEfaCounterExtErrors, EFADV_COMP_CNTR_INIT_WITH_ERR_EXTERNAL_MEM);
}
#else
TEST(our_declarations_match_the_installed_headers) { SKIP("no rdma-core headers v65 or newer (libibverbs-dev)"); }
#endif

TEST_MAIN()
