// Tells torch that two CUDA devices exist, as far as tensors that only carry a device need to know.
#include <c10/core/impl/DeviceGuardImplInterface.h>

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

struct VirtualGuard final : public c10::impl::DeviceGuardImplInterface {
  static inline thread_local DeviceIndex current = 0;

  static Stream stream() { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }

  DeviceType type() const override { return DeviceType::CUDA; }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  void uncheckedSetDevice(Device device) const noexcept override {
    current = device.index() < 0 ? 0 : device.index();
  }
  void setDevice(Device device) const override { uncheckedSetDevice(device); }
  Device exchangeDevice(Device device) const override {
    Device old = getDevice();
    uncheckedSetDevice(device);
    return old;
  }
  Stream getStream(Device) const override { return stream(); }
  Stream exchangeStream(Stream) const override { return stream(); }
  DeviceIndex deviceCount() const noexcept override { return 2; }
};

static VirtualGuard guard;
static c10::impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &guard);
