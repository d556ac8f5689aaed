// SPDX-License-Identifier: Apache-2.0
// libibverbs and libefa, opened at run time. Versioned symbols are asked for by version, so that an older library is
// recognised by what it lacks, and named by the rdma-core release that brought it.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "fabric/verbs_abi.h"
#include "fabric/verbs_missing.h"

namespace nvshmem_efa::verbs {

// Null where the library has no such symbol; those that open() demands are never null.
struct VerbsApi {
    // libibverbs, demanded
    IbvDevice** (*get_device_list)(int* count);
    void (*free_device_list)(IbvDevice** list);
    const char* (*get_device_name)(IbvDevice* device);
    IbvContext* (*open_device)(IbvDevice* device);
    int (*close_device)(IbvContext* context);
    int (*query_device)(IbvContext* context, IbvDeviceAttr* attr);
    int (*query_port)(IbvContext* context, uint8_t port, IbvPortAttr* attr);
    int (*query_gid)(IbvContext* context, uint8_t port, int index, IbvGid* gid);
    IbvPd* (*alloc_pd)(IbvContext* context);
    int (*dealloc_pd)(IbvPd* pd);
    IbvMr* (*reg_mr)(IbvPd* pd, void* addr, size_t length, int access);
    int (*dereg_mr)(IbvMr* mr);
    int (*destroy_cq)(IbvCq* cq);
    int (*modify_qp)(IbvQp* qp, IbvQpAttr* attr, int mask);
    int (*destroy_qp)(IbvQp* qp);
    IbvAh* (*create_ah)(IbvPd* pd, IbvAhAttr* attr);
    int (*destroy_ah)(IbvAh* ah);
    // libibverbs, optional
    IbvMr* (*reg_dmabuf_mr)(IbvPd* pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access);
    int (*query_qp_data_in_order)(IbvQp* qp, uint32_t opcode, uint32_t flags);
    int (*query_counter_caps)(IbvContext* context, IbvCompCounterCaps* caps, size_t caps_bytes);
    int (*destroy_counter)(IbvCompCounter* counter);
    int (*attach_counter)(IbvQp* qp, IbvCompCounter* counter, IbvAttachCompCounterAttr* attr);
    // libefa, demanded
    int (*efa_query_device)(IbvContext* context, EfaDeviceAttr* attr, uint32_t bytes);
    int (*efa_query_ah)(IbvAh* ah, EfaAhAttr* attr, uint32_t bytes);
    IbvQp* (*efa_create_qp)(IbvContext* context, IbvQpInitAttrEx* attr, EfaQpInitAttr* efa_attr, uint32_t bytes);
    IbvCq* (*efa_create_cq)(IbvContext* context, IbvCqInitAttrEx* attr, EfaCqInitAttr* efa_attr, uint32_t bytes);
    int (*efa_query_qp_wqs)(IbvQp* qp, EfaWqAttr* sq, EfaWqAttr* rq, uint32_t bytes);
    int (*efa_query_cq)(IbvCq* cq, EfaCqAttr* attr, uint32_t bytes);
    // libefa, optional
    int (*efa_max_sq_depth)(IbvContext* context, EfaSqDepthAttr* attr, uint32_t bytes);
    int (*efa_max_rq_depth)(IbvContext* context, EfaRqDepthAttr* attr, uint32_t bytes);
    IbvCompCounter* (*efa_create_counter)(IbvContext* context, IbvCompCounterInitAttr* attr,
                                          EfaCompCounterInitAttr* efa_attr, uint32_t bytes);
};

class VerbsLibrary {
   public:
    ~VerbsLibrary();
    VerbsLibrary(const VerbsLibrary&) = delete;
    VerbsLibrary& operator=(const VerbsLibrary&) = delete;

    // Null, with the reasons added to `missing`, when a library or a demanded symbol is not there.
    static std::shared_ptr<const VerbsLibrary> open(const std::string& libibverbs, const std::string& libefa,
                                                    MissingList* missing);
    const VerbsApi& api() const { return api_; }
    // All of IBVERBS_1.18 and EFA_1.7 that completion counters need.
    bool has_counter_calls() const;

   private:
    VerbsLibrary() = default;
    void resolve(const std::string& libibverbs, const std::string& libefa, MissingList* missing);

    void* ibverbs_ = nullptr;
    void* efa_ = nullptr;
    VerbsApi api_ = {};
};

}  // namespace nvshmem_efa::verbs
