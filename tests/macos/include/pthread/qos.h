// Stand-in for the part of macOS's <pthread/qos.h> and <sys/qos.h> that mlxhog uses.
#pragma once

typedef unsigned int qos_class_t;

extern "C" qos_class_t qos_class_self();
extern "C" int pthread_set_qos_class_self_np(qos_class_t qos_class, int relative_priority);
