/* Calls that pycuda's module names, so that it loads, and that nothing here uses. They return CUDA_ERROR_NOT_SUPPORTED.
 *
 * Without cuda.h, whose prototypes would be in the way: these are the names in the library, versions included.
 * `nm -D --undefined-only` of `pycuda/_driver*.so` lists what must exist; Python loads it with RTLD_NOW.
 */

enum { NOT_SUPPORTED = 801 };

#define UNSUPPORTED(name) \
    __attribute__((visibility("default"))) int name(void) { return NOT_SUPPORTED; }

UNSUPPORTED(cuArray3DCreate_v2) UNSUPPORTED(cuArray3DGetDescriptor_v2) UNSUPPORTED(cuArrayCreate_v2) UNSUPPORTED(cuArrayDestroy)
UNSUPPORTED(cuArrayGetDescriptor_v2) UNSUPPORTED(cuCtxAttach) UNSUPPORTED(cuCtxCreate_v2) UNSUPPORTED(cuCtxDetach)
UNSUPPORTED(cuCtxDisablePeerAccess) UNSUPPORTED(cuCtxEnablePeerAccess) UNSUPPORTED(cuCtxGetApiVersion)
UNSUPPORTED(cuCtxGetCacheConfig) UNSUPPORTED(cuCtxGetLimit) UNSUPPORTED(cuCtxGetSharedMemConfig)
UNSUPPORTED(cuCtxSetCacheConfig) UNSUPPORTED(cuCtxSetLimit) UNSUPPORTED(cuCtxSetSharedMemConfig)
UNSUPPORTED(cuDeviceCanAccessPeer) UNSUPPORTED(cuDeviceGetByPCIBusId) UNSUPPORTED(cuDeviceGetPCIBusId)
UNSUPPORTED(cuFuncGetAttribute) UNSUPPORTED(cuFuncSetAttribute) UNSUPPORTED(cuFuncSetBlockShape)
UNSUPPORTED(cuFuncSetCacheConfig) UNSUPPORTED(cuFuncSetSharedSize) UNSUPPORTED(cuIpcCloseMemHandle)
UNSUPPORTED(cuIpcGetEventHandle) UNSUPPORTED(cuIpcGetMemHandle) UNSUPPORTED(cuIpcOpenEventHandle)
UNSUPPORTED(cuIpcOpenMemHandle_v2) UNSUPPORTED(cuLaunch) UNSUPPORTED(cuLaunchGrid) UNSUPPORTED(cuLaunchGridAsync)
UNSUPPORTED(cuLaunchKernel) UNSUPPORTED(cuLinkAddData_v2) UNSUPPORTED(cuLinkAddFile_v2) UNSUPPORTED(cuLinkComplete)
UNSUPPORTED(cuLinkCreate_v2) UNSUPPORTED(cuLinkDestroy) UNSUPPORTED(cuMemAllocManaged) UNSUPPORTED(cuMemAllocPitch_v2)
UNSUPPORTED(cuMemGetAddressRange_v2) UNSUPPORTED(cuMemHostGetDevicePointer_v2) UNSUPPORTED(cuMemcpy2DAsync_v2)
UNSUPPORTED(cuMemcpy2DUnaligned_v2) UNSUPPORTED(cuMemcpy2D_v2) UNSUPPORTED(cuMemcpy3DAsync_v2) UNSUPPORTED(cuMemcpy3DPeer)
UNSUPPORTED(cuMemcpy3DPeerAsync) UNSUPPORTED(cuMemcpy3D_v2) UNSUPPORTED(cuMemcpyAtoA_v2) UNSUPPORTED(cuMemcpyAtoD_v2)
UNSUPPORTED(cuMemcpyAtoH_v2) UNSUPPORTED(cuMemcpyDtoA_v2) UNSUPPORTED(cuMemcpyHtoA_v2) UNSUPPORTED(cuMemcpyPeer)
UNSUPPORTED(cuMemcpyPeerAsync) UNSUPPORTED(cuMemsetD16Async) UNSUPPORTED(cuMemsetD16_v2) UNSUPPORTED(cuMemsetD2D16Async)
UNSUPPORTED(cuMemsetD2D16_v2) UNSUPPORTED(cuMemsetD2D32Async) UNSUPPORTED(cuMemsetD2D32_v2) UNSUPPORTED(cuMemsetD2D8Async)
UNSUPPORTED(cuMemsetD2D8_v2) UNSUPPORTED(cuModuleGetFunction) UNSUPPORTED(cuModuleGetGlobal_v2) UNSUPPORTED(cuModuleGetSurfRef)
UNSUPPORTED(cuModuleGetTexRef) UNSUPPORTED(cuModuleLoad) UNSUPPORTED(cuModuleLoadData) UNSUPPORTED(cuModuleLoadDataEx)
UNSUPPORTED(cuModuleUnload) UNSUPPORTED(cuParamSetSize) UNSUPPORTED(cuParamSetTexRef) UNSUPPORTED(cuParamSetf)
UNSUPPORTED(cuParamSeti) UNSUPPORTED(cuParamSetv) UNSUPPORTED(cuProfilerInitialize) UNSUPPORTED(cuProfilerStart)
UNSUPPORTED(cuProfilerStop) UNSUPPORTED(cuStreamAttachMemAsync) UNSUPPORTED(cuSurfRefGetArray) UNSUPPORTED(cuSurfRefSetArray)
UNSUPPORTED(cuTexRefCreate) UNSUPPORTED(cuTexRefDestroy) UNSUPPORTED(cuTexRefGetAddressMode) UNSUPPORTED(cuTexRefGetAddress_v2)
UNSUPPORTED(cuTexRefGetArray) UNSUPPORTED(cuTexRefGetFilterMode) UNSUPPORTED(cuTexRefGetFlags) UNSUPPORTED(cuTexRefGetFormat)
UNSUPPORTED(cuTexRefSetAddress2D_v3) UNSUPPORTED(cuTexRefSetAddressMode) UNSUPPORTED(cuTexRefSetAddress_v2)
UNSUPPORTED(cuTexRefSetArray) UNSUPPORTED(cuTexRefSetFilterMode) UNSUPPORTED(cuTexRefSetFlags) UNSUPPORTED(cuTexRefSetFormat)
