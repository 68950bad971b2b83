// Stand-in for the part of macOS's <libproc.h> and <sys/proc_info.h> that mlxhog uses.
#pragma once

#include <stdint.h>

#define PROC_PIDTBSDINFO 3

struct proc_bsdinfo {
  uint32_t pbi_flags, pbi_status, pbi_xstatus, pbi_pid, pbi_ppid;
  uint32_t pbi_uid, pbi_gid, pbi_ruid, pbi_rgid, pbi_svuid, pbi_svgid;
  uint32_t rfu_1;
  char pbi_comm[16];
  char pbi_name[32];
  uint32_t pbi_nfiles, pbi_pgid, pbi_pjobc, e_tdev, e_tpgid;
  int32_t pbi_nice;
  uint64_t pbi_start_tvsec, pbi_start_tvusec;
};
static_assert(sizeof(proc_bsdinfo) == 136, "as in the SDK");

extern "C" int proc_pidinfo(int pid, int flavor, uint64_t arg, void* buffer, int size);
