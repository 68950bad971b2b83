// Stand-in for the part of macOS's <sys/proc.h> that mlxhog uses.
#pragma once

#define SRUN 2
#define SZOMB 5
