// RACE_POINT() stands between a plain read and the plain write that follows, in kernels that race on
// purpose. On a GPU it is nothing; the host shim lets another thread run there.
#ifndef MLXHOG_RACE_POINT_H
#define MLXHOG_RACE_POINT_H

#ifndef RACE_POINT
#define RACE_POINT()
#endif

#endif
