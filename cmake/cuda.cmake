# CUDA, when CACHALOT_CUDA is on: backend/cuda/*.cu become the library cachalot_cuda, linked into cachalot_backend.
# Everything else is plain C++ and built as always. libcuda is never linked: the program must start without it.

find_program(CACHALOT_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND CACHALOT_NVCC)
  set(ENV{CUDACXX} ${CACHALOT_NVCC})  # where check_language and enable_language look
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)  # before enable_language, which would choose 75
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR
    "CACHALOT_CUDA is on, but there is no CUDA compiler that works: nvcc in PATH, or /usr/local/cuda/bin/nvcc.\n"
    "Either install NVIDIA's CUDA toolkit (tested with 13.0; its packages are called cuda-toolkit or "
    "nvidia-cuda-toolkit), or, if it is installed elsewhere, say where:\n"
    "  cmake --preset cuda -DCMAKE_CUDA_COMPILER=/path/to/nvcc\n"
    "or build without CUDA:\n"
    "  cmake --preset cpu")
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 does not know nvcc's spelling of C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
find_package(CUDAToolkit REQUIRED)

file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/backend/cuda/*.cu)
add_library(cachalot_cuda STATIC ${cuda_sources})
set_target_properties(cachalot_cuda PROPERTIES
  # Portable: any card from Ampere on. Machine code for Ampere and Hopper, so that nothing is compiled at start
  # there; PTX for the rest.
  CUDA_ARCHITECTURES "80-real;90-real;80-virtual"
  # The options of the C++ files are g++'s; nvcc passes them on only behind -Xcompiler.
  COMPILE_OPTIONS "--expt-relaxed-constexpr;-Werror;all-warnings;-Xcompiler=-Wall,-Wextra,-Werror,-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=")
# Hopper's own instructions (wgmma, setmaxnreg) exist for sm_90a alone.
file(GLOB hopper_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/backend/cuda/hopper/*.cu)
set(hopper_tests ${hopper_sources})  # those that need kernels of their own
list(FILTER hopper_tests INCLUDE REGEX "_test\\.cu$")
list(FILTER hopper_sources EXCLUDE REGEX "_test\\.cu$")
add_library(cachalot_hopper STATIC ${hopper_sources})
get_target_property(cuda_options cachalot_cuda COMPILE_OPTIONS)
set_target_properties(cachalot_hopper PROPERTIES CUDA_ARCHITECTURES "90a-real" COMPILE_OPTIONS "${cuda_options}")
# (Back to backend: the choice of tiles is plain C++ there, and tested without a GPU.)
# The runtime PRIVATE: no C++ file needs its headers, and all of them have the options, and so ccache's objects, of the
# preset cpu.
target_link_libraries(cachalot_hopper PUBLIC cachalot_base cachalot_tensor cachalot_backend PRIVATE CUDA::cudart_static)
target_link_libraries(cachalot_cuda PUBLIC cachalot_hopper cachalot_base cachalot_tensor ${CMAKE_DL_LIBS}
                      PRIVATE CUDA::cudart_static)
target_link_libraries(cachalot_backend PUBLIC cachalot_cuda)
if(hopper_tests AND TARGET backend_test)
  add_library(cachalot_hopper_tests OBJECT ${hopper_tests})
  set_target_properties(cachalot_hopper_tests PROPERTIES CUDA_ARCHITECTURES "90a-real"
                        COMPILE_OPTIONS "${cuda_options}")
  target_link_libraries(cachalot_hopper_tests PUBLIC cachalot_hopper GTest::gtest)
  target_link_libraries(backend_test PRIVATE cachalot_hopper_tests)
endif()
