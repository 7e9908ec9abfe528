"""Shared libraries that are, or pretend to be, TFLite delegates, compiled on the spot."""

import shutil
import subprocess
from pathlib import Path

#: Does nothing to the graph, and writes the options that it was given into the file that the option `log` names.
NOOP = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
typedef struct Delegate {
  void* data;
  int (*prepare)(void* context, struct Delegate* delegate);
  void* copy_from; void* copy_to; void* free_handle;
  int64_t flags;
  void* builder;
} Delegate;
static int prepare(void* context, Delegate* delegate) { (void)context; (void)delegate; return 0; }
static Delegate made = {0, prepare, 0, 0, 0, 0, 0};
void* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*)) {
  for (size_t i = 0; i < count; i++) if (!strcmp(keys[i], "log")) {
    FILE* file = fopen(values[i], "w");
    for (size_t k = 0; file && k < count; k++) fprintf(file, "%s=%s\n", keys[k], values[k]);
    if (file) fclose(file);
  }
  for (size_t i = 0; i < count; i++) if (!strcmp(keys[i], "fail")) { report("no such device: slot 7"); return 0; }
  return &made;
}
void tflite_plugin_destroy_delegate(void* delegate) { (void)delegate; }
"""
#: A library all right, but no delegate.
NO_DELEGATE = "int answer(void) { return 42; }\n"
#: A delegate of another ABI: it kills its process when it is created.
KILLS = r"""
#include <signal.h>
#include <stddef.h>
void* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void* report) { raise(SIGSEGV); return NULL; }
void tflite_plugin_destroy_delegate(void* delegate) {}
"""

COMPILER = shutil.which("gcc") or shutil.which("cc")


def build(source: str, path: Path) -> Path:
    """The library of a C source."""
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", path, "-x", "c", "-"], input=source, text=True, check=True)
    return path
