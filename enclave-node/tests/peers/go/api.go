package main

import (
	"context"

	"google.golang.org/grpc"
)

// The messages of k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1, by hand: their
// numbers do not come from the file that the plugin's code is generated from.

type Empty struct{}

type DevicePluginOptions struct {
	PreStartRequired                bool `protobuf:"varint,1,opt,name=pre_start_required,proto3"`
	GetPreferredAllocationAvailable bool `protobuf:"varint,2,opt,name=get_preferred_allocation_available,proto3"`
}

type RegisterRequest struct {
	Version      string               `protobuf:"bytes,1,opt,name=version,proto3"`
	Endpoint     string               `protobuf:"bytes,2,opt,name=endpoint,proto3"`
	ResourceName string               `protobuf:"bytes,3,opt,name=resource_name,proto3"`
	Options      *DevicePluginOptions `protobuf:"bytes,4,opt,name=options,proto3"`
}

type ListAndWatchResponse struct {
	Devices []*Device `protobuf:"bytes,1,rep,name=devices,proto3"`
}

type Device struct {
	ID       string        `protobuf:"bytes,1,opt,name=ID,proto3"`
	Health   string        `protobuf:"bytes,2,opt,name=health,proto3"`
	Topology *TopologyInfo `protobuf:"bytes,3,opt,name=topology,proto3"`
}

type TopologyInfo struct {
	Nodes []*NUMANode `protobuf:"bytes,1,rep,name=nodes,proto3"`
}

type NUMANode struct {
	ID int64 `protobuf:"varint,1,opt,name=ID,proto3"`
}

type PreferredAllocationRequest struct {
	ContainerRequests []*ContainerPreferredAllocationRequest `protobuf:"bytes,1,rep,name=container_requests,proto3"`
}

type ContainerPreferredAllocationRequest struct {
	AvailableDeviceIDs   []string `protobuf:"bytes,1,rep,name=available_deviceIDs,proto3"`
	MustIncludeDeviceIDs []string `protobuf:"bytes,2,rep,name=must_include_deviceIDs,proto3"`
	AllocationSize       int32    `protobuf:"varint,3,opt,name=allocation_size,proto3"`
}

type PreferredAllocationResponse struct {
	ContainerResponses []*ContainerPreferredAllocationResponse `protobuf:"bytes,1,rep,name=container_responses,proto3"`
}

type ContainerPreferredAllocationResponse struct {
	DeviceIDs []string `protobuf:"bytes,1,rep,name=deviceIDs,proto3"`
}

type AllocateRequest struct {
	ContainerRequests []*ContainerAllocateRequest `protobuf:"bytes,1,rep,name=container_requests,proto3"`
}

type ContainerAllocateRequest struct {
	DevicesIDs []string `protobuf:"bytes,1,rep,name=devices_ids,proto3"`
}

type AllocateResponse struct {
	ContainerResponses []*ContainerAllocateResponse `protobuf:"bytes,1,rep,name=container_responses,proto3"`
}

type ContainerAllocateResponse struct {
	Envs        map[string]string `protobuf:"bytes,1,rep,name=envs,proto3" protobuf_key:"bytes,1,opt,name=key,proto3" protobuf_val:"bytes,2,opt,name=value,proto3"`
	Mounts      []*Mount          `protobuf:"bytes,2,rep,name=mounts,proto3"`
	Devices     []*DeviceSpec     `protobuf:"bytes,3,rep,name=devices,proto3"`
	Annotations map[string]string `protobuf:"bytes,4,rep,name=annotations,proto3" protobuf_key:"bytes,1,opt,name=key,proto3" protobuf_val:"bytes,2,opt,name=value,proto3"`
}

type Mount struct {
	ContainerPath string `protobuf:"bytes,1,opt,name=container_path,proto3"`
	HostPath      string `protobuf:"bytes,2,opt,name=host_path,proto3"`
	ReadOnly      bool   `protobuf:"varint,3,opt,name=read_only,proto3"`
}

type DeviceSpec struct {
	ContainerPath string `protobuf:"bytes,1,opt,name=container_path,proto3"`
	HostPath      string `protobuf:"bytes,2,opt,name=host_path,proto3"`
	Permissions   string `protobuf:"bytes,3,opt,name=permissions,proto3"`
}

var registration = grpc.ServiceDesc{
	ServiceName: "v1beta1.Registration",
	HandlerType: (*interface{})(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Register",
		Handler: func(_ interface{}, _ context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor) (interface{}, error) {
			request := &RegisterRequest{}
			if err := decode(request); err != nil {
				return nil, err
			}
			return &Empty{}, register(request)
		},
	}},
}

func (m *Empty) Reset()         { *m = Empty{} }
func (m *Empty) String() string { return "Empty" }
func (m *Empty) ProtoMessage()  {}

func (m *DevicePluginOptions) Reset()         { *m = DevicePluginOptions{} }
func (m *DevicePluginOptions) String() string { return "DevicePluginOptions" }
func (m *DevicePluginOptions) ProtoMessage()  {}

func (m *RegisterRequest) Reset()         { *m = RegisterRequest{} }
func (m *RegisterRequest) String() string { return "RegisterRequest" }
func (m *RegisterRequest) ProtoMessage()  {}

func (m *ListAndWatchResponse) Reset()         { *m = ListAndWatchResponse{} }
func (m *ListAndWatchResponse) String() string { return "ListAndWatchResponse" }
func (m *ListAndWatchResponse) ProtoMessage()  {}

func (m *Device) Reset()         { *m = Device{} }
func (m *Device) String() string { return "Device" }
func (m *Device) ProtoMessage()  {}

func (m *TopologyInfo) Reset()         { *m = TopologyInfo{} }
func (m *TopologyInfo) String() string { return "TopologyInfo" }
func (m *TopologyInfo) ProtoMessage()  {}

func (m *NUMANode) Reset()         { *m = NUMANode{} }
func (m *NUMANode) String() string { return "NUMANode" }
func (m *NUMANode) ProtoMessage()  {}

func (m *PreferredAllocationRequest) Reset()         { *m = PreferredAllocationRequest{} }
func (m *PreferredAllocationRequest) String() string { return "PreferredAllocationRequest" }
func (m *PreferredAllocationRequest) ProtoMessage()  {}

func (m *ContainerPreferredAllocationRequest) Reset() { *m = ContainerPreferredAllocationRequest{} }
func (m *ContainerPreferredAllocationRequest) String() string {
	return "ContainerPreferredAllocationRequest"
}
func (m *ContainerPreferredAllocationRequest) ProtoMessage() {}

func (m *PreferredAllocationResponse) Reset()         { *m = PreferredAllocationResponse{} }
func (m *PreferredAllocationResponse) String() string { return "PreferredAllocationResponse" }
func (m *PreferredAllocationResponse) ProtoMessage()  {}

func (m *ContainerPreferredAllocationResponse) Reset() { *m = ContainerPreferredAllocationResponse{} }
func (m *ContainerPreferredAllocationResponse) String() string {
	return "ContainerPreferredAllocationResponse"
}
func (m *ContainerPreferredAllocationResponse) ProtoMessage() {}

func (m *AllocateRequest) Reset()         { *m = AllocateRequest{} }
func (m *AllocateRequest) String() string { return "AllocateRequest" }
func (m *AllocateRequest) ProtoMessage()  {}

func (m *ContainerAllocateRequest) Reset()         { *m = ContainerAllocateRequest{} }
func (m *ContainerAllocateRequest) String() string { return "ContainerAllocateRequest" }
func (m *ContainerAllocateRequest) ProtoMessage()  {}

func (m *AllocateResponse) Reset()         { *m = AllocateResponse{} }
func (m *AllocateResponse) String() string { return "AllocateResponse" }
func (m *AllocateResponse) ProtoMessage()  {}

func (m *ContainerAllocateResponse) Reset()         { *m = ContainerAllocateResponse{} }
func (m *ContainerAllocateResponse) String() string { return "ContainerAllocateResponse" }
func (m *ContainerAllocateResponse) ProtoMessage()  {}

func (m *Mount) Reset()         { *m = Mount{} }
func (m *Mount) String() string { return "Mount" }
func (m *Mount) ProtoMessage()  {}

func (m *DeviceSpec) Reset()         { *m = DeviceSpec{} }
func (m *DeviceSpec) String() string { return "DeviceSpec" }
func (m *DeviceSpec) ProtoMessage()  {}
