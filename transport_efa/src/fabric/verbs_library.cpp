// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs_library.h"

#include <dlfcn.h>
#include <link.h>

#include <climits>
#include <cstdlib>
#include <vector>

#include "log.h"

namespace nvshmem_efa::verbs {
namespace {

enum class Need : bool { kOptional, kDemanded };

struct Symbol {
    void** slot;
    const char* name;
    const char* version;
    const char* release;  // of rdma-core, that brought it
    Need need;
};

template <class Function>
void** slot_of(Function*& pointer) {
    return reinterpret_cast<void**>(&pointer);
}

std::vector<Symbol> ibverbs_symbols(VerbsApi& api) {
    constexpr const char* kBase = "IBVERBS_1.1";
    const auto must = Need::kDemanded;
    const auto may = Need::kOptional;
    return {
        {slot_of(api.get_device_list), "ibv_get_device_list", kBase, "any", must},
        {slot_of(api.free_device_list), "ibv_free_device_list", kBase, "any", must},
        {slot_of(api.get_device_name), "ibv_get_device_name", kBase, "any", must},
        {slot_of(api.open_device), "ibv_open_device", kBase, "any", must},
        {slot_of(api.close_device), "ibv_close_device", kBase, "any", must},
        {slot_of(api.query_device), "ibv_query_device", kBase, "any", must},
        {slot_of(api.query_port), "ibv_query_port", kBase, "any", must},
        {slot_of(api.query_gid), "ibv_query_gid", kBase, "any", must},
        {slot_of(api.alloc_pd), "ibv_alloc_pd", kBase, "any", must},
        {slot_of(api.dealloc_pd), "ibv_dealloc_pd", kBase, "any", must},
        {slot_of(api.reg_mr), "ibv_reg_mr", kBase, "any", must},
        {slot_of(api.dereg_mr), "ibv_dereg_mr", kBase, "any", must},
        {slot_of(api.destroy_cq), "ibv_destroy_cq", kBase, "any", must},
        {slot_of(api.modify_qp), "ibv_modify_qp", kBase, "any", must},
        {slot_of(api.destroy_qp), "ibv_destroy_qp", kBase, "any", must},
        {slot_of(api.create_ah), "ibv_create_ah", kBase, "any", must},
        {slot_of(api.destroy_ah), "ibv_destroy_ah", kBase, "any", must},
        {slot_of(api.reg_dmabuf_mr), "ibv_reg_dmabuf_mr", "IBVERBS_1.12", "v34", may},
        {slot_of(api.query_qp_data_in_order), "ibv_query_qp_data_in_order", "IBVERBS_1.14", "v36", may},
        {slot_of(api.query_counter_caps), "_ibv_query_comp_cntr_caps", "IBVERBS_1.18", "v65", may},
        {slot_of(api.destroy_counter), "ibv_destroy_comp_cntr", "IBVERBS_1.18", "v65", may},
        {slot_of(api.attach_counter), "ibv_qp_attach_comp_cntr", "IBVERBS_1.18", "v65", may},
    };
}

std::vector<Symbol> efa_symbols(VerbsApi& api) {
    const auto must = Need::kDemanded;
    const auto may = Need::kOptional;
    return {
        {slot_of(api.efa_query_device), "efadv_query_device", "EFA_1.1", "v26", must},
        {slot_of(api.efa_query_ah), "efadv_query_ah", "EFA_1.1", "v26", must},
        {slot_of(api.efa_create_qp), "efadv_create_qp_ex", "EFA_1.1", "v26", must},
        {slot_of(api.efa_create_cq), "efadv_create_cq", "EFA_1.2", "v43", must},
        {slot_of(api.efa_query_qp_wqs), "efadv_query_qp_wqs", "EFA_1.4", "v59", must},
        {slot_of(api.efa_query_cq), "efadv_query_cq", "EFA_1.4", "v59", must},
        {slot_of(api.efa_max_sq_depth), "efadv_get_max_sq_depth", "EFA_1.5", "v63", may},
        {slot_of(api.efa_max_rq_depth), "efadv_get_max_rq_depth", "EFA_1.5", "v63", may},
        {slot_of(api.efa_create_counter), "efadv_create_comp_cntr", "EFA_1.7", "v65", may},
    };
}

// Where the library really is; the file's own name carries the release ("libefa.so.1.3.56.1").
std::string file_of(void* library) {
    link_map* map = nullptr;
    if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr || map->l_name == nullptr) return "unknown file";
    char real[PATH_MAX];
    return realpath(map->l_name, real) ? real : map->l_name;
}

void* open_library(const std::string& name, MissingList* missing) {
    // Never unloaded: libefa registers itself with libibverbs and has no way to take that back.
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == nullptr) {
        const char* reason = dlerror();
        missing->add(
            Code::kMissing, "cannot load " + name + " (" + (reason ? reason : "no reason given") + ")",
            "install rdma-core v59 or newer with its EFA provider (packages libibverbs1 and ibverbs-providers, or "
            "rdma-core and libibverbs), or the EFA installer");
    }
    return library;
}

// Fills the slots. What is demanded and not there goes to `missing` in one entry: names, versions, what was found.
void find_symbols(void* library, const std::vector<Symbol>& symbols, MissingList* missing) {
    std::string absent;
    std::string newest = "no versioned symbol of this library";
    for (const Symbol& symbol : symbols) {
        *symbol.slot = dlvsym(library, symbol.name, symbol.version);
        const std::string label =
            std::string(symbol.name) + " (" + symbol.version + ", rdma-core " + symbol.release + ")";
        if (*symbol.slot != nullptr) {
            newest = label;  // the tables are sorted by version
        } else if (symbol.need == Need::kDemanded) {
            absent += (absent.empty() ? "" : ", ") + label;
        } else {
            EFA_LOG(kDebug, "verbs", "%s has no %s", file_of(library).c_str(), label.c_str());
        }
    }
    if (absent.empty()) return;
    missing->add(
        Code::kTooOld, file_of(library) + " is too old: it lacks " + absent + "; the newest found is " + newest,
        "rdma-core v59 (2025-08) or newer is needed, v65 for completion counters; look for a second, older copy "
        "on the library path");
}

}  // namespace

VerbsLibrary::~VerbsLibrary() {
    if (efa_) dlclose(efa_);
    if (ibverbs_) dlclose(ibverbs_);
}

void VerbsLibrary::resolve(const std::string& libibverbs, const std::string& libefa, MissingList* missing) {
    ibverbs_ = open_library(libibverbs, missing);
    efa_ = open_library(libefa, missing);
    if (ibverbs_) find_symbols(ibverbs_, ibverbs_symbols(api_), missing);
    if (efa_) find_symbols(efa_, efa_symbols(api_), missing);
}

std::shared_ptr<const VerbsLibrary> VerbsLibrary::open(const std::string& libibverbs, const std::string& libefa,
                                                       MissingList* missing) {
    std::shared_ptr<VerbsLibrary> library(new VerbsLibrary);
    MissingList problems;
    library->resolve(libibverbs, libefa, &problems);
    if (problems.empty()) return library;
    missing->append(problems);
    return nullptr;
}

bool VerbsLibrary::has_counter_calls() const {
    return api_.query_counter_caps && api_.destroy_counter && api_.attach_counter && api_.efa_create_counter;
}

}  // namespace nvshmem_efa::verbs
