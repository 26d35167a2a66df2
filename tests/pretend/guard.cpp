// A device guard and hooks for a CUDA device whose memory is main memory. See tests/pretend/guard.py.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <mutex>
#include <vector>

namespace {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);
const c10::Stream kStream(c10::Stream::DEFAULT, kDevice);

struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return kStream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return kStream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

struct Hooks : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  c10::Device getDeviceFromPtr(void*) const override { return kDevice; }
};
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));  // so that one can lie where the other lay

std::mutex lock;
std::vector<void*> freed;  // capsules of tensors that no longer exist, until Python collects them

}  // namespace

extern "C" void register_guard() {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(new Guard());
}

extern "C" void set_hooks(bool present) {
  auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  if (present) {
    new (hooks) Hooks();
  } else {
    new (hooks) at::CUDAHooksInterface();
  }
}

extern "C" void on_free(void** capsule) {  // called from any thread, without Python's lock
  std::lock_guard<std::mutex> locked(lock);
  freed.push_back(*capsule);
}

extern "C" void* take_freed() {
  std::lock_guard<std::mutex> locked(lock);
  if (freed.empty()) return nullptr;
  void* last = freed.back();
  freed.pop_back();
  return last;
}
