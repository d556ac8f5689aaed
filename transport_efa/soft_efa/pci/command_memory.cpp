// SPDX-License-Identifier: Apache-2.0
// Memory regions: the guest's pages are mapped side by side, so that the model sees one piece of memory.
#include "soft_efa/pci/commands.h"
#include "soft_efa/pci/page_list.h"

namespace nvshmem_efa::soft::pci {

AdminStatus Commands::reg_mr(const AdminCommand& raw, AdminReply* reply) {
    const auto command = raw.as<RegMrCommand>();
    DomainObject* pd = objects_.pds.find(command.pd);
    if (!pd) return refuse(AdminStatus::kIllegalParameter, "no protection domain %u", command.pd);
    if (command.reserved || command.reserved2 || (command.flags & kMrFlagReserved) ||
        (command.permissions & kMrPermissionsReserved))
        return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    if (command.flags & kMrIsPhysical)
        return refuse(AdminStatus::kIllegalParameter, "this device has no physical memory regions");
    const bool is_remote_allowed = (!(command.permissions & kMrRemoteWrite) || device_.caps().rdma_write) &&
                                   (!(command.permissions & kMrRemoteRead) || device_.caps().rdma_read);
    if (!is_remote_allowed) return refuse(AdminStatus::kIllegalParameter, "this device has no such remote access");
    if (objects_.mrs.size() >= device_.caps().max_mrs)
        return refuse(AdminStatus::kNoResources, "all %u memory regions are in use", device_.caps().max_mrs);
    RegionPages region_pages;
    if (Status status = read_region_pages(*parts_.memory, command, raw.flags, parts_.profile.pci.max_mr_pages,
                                          parts_.profile.pci.page_sizes, &region_pages);
        !status.ok())
        return refuse(status);
    MrObject mr;
    mr.pd = command.pd;
    if (Status status = parts_.memory->map_pages(region_pages.pages, kListPageShift, &mr.pages); !status.ok())
        return refuse(status);
    MemoryAttr attr;
    attr.addr = reinterpret_cast<void*>(command.addr);
    attr.bytes = command.bytes;
    attr.access = (command.permissions & kMrLocalWrite ? kAccessLocalWrite : 0) |
                  (command.permissions & kMrRemoteWrite ? kAccessRemoteWrite : 0) |
                  (command.permissions & kMrRemoteRead ? kAccessRemoteRead : 0);
    MemoryRegion region;
    uint8_t* const here = mr.pages.data() + region_pages.first_byte;
    if (Status status = device_.register_memory(attr, here, &region, command.pd); !status.ok()) return refuse(status);
    objects_.mrs.emplace(region.lkey, std::move(mr));
    ++pd->users;
    RegMrReply body{};
    body.lkey = region.lkey;
    body.rkey = region.rkey;
    reply->set(body);
    return AdminStatus::kSuccess;
}

AdminStatus Commands::dereg_mr(uint32_t lkey) {
    const auto at = objects_.mrs.find(lkey);
    if (at == objects_.mrs.end()) return refuse(AdminStatus::kIllegalParameter, "no memory region has lkey 0x%x", lkey);
    // The model looks a key up anew at each use, so the pages may go at once.
    if (Status status = device_.deregister_memory(lkey); !status.ok()) return refuse(status);
    --objects_.pds.find(at->second.pd)->users;
    objects_.mrs.erase(at);
    return AdminStatus::kSuccess;
}

}  // namespace nvshmem_efa::soft::pci
