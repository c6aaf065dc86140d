// A stand-in for kubelet on grpc-go, the stack that kubelet itself uses, told
// what to do line by line.
//
// usage: kubelet DIRECTORY AUTHORITY REFUSALS EMPTIES
// Follows kubelet's pkg/kubelet/cm/devicemanager/plugin/v1beta1: empties the
// directory, listens, dials back (blocking, 10 s) within Register. Every event
// is a line of JSON on stdout; kubelet.py speaks the same language.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	directory, authority = os.Args[1], os.Args[2]
	lock                 sync.Mutex
	refusals             int
	plugins              = map[string]*grpc.ClientConn{}
)

func say(event string, fields map[string]interface{}) {
	lock.Lock()
	defer lock.Unlock()
	fields["event"] = event
	line, _ := json.Marshal(fields)
	fmt.Println(string(line))
}

type fields = map[string]interface{}

// dial is kubelet's: blocking, at most 10 s. Kubelets before 1.26 had no
// WithAuthority, so that the path became the authority.
func dial(path string) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	options := []grpc.DialOption{
		grpc.WithInsecure(),
		grpc.WithBlock(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}),
	}
	if authority == "localhost" {
		options = append(options, grpc.WithAuthority("localhost"))
	}
	return grpc.DialContext(ctx, path, options...)
}

func call(conn *grpc.ClientConn, method string, request, answer interface{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return conn.Invoke(ctx, "/v1beta1.DevicePlugin/"+method, request, answer)
}

func watch(resource string, conn *grpc.ClientConn) {
	description := &grpc.StreamDesc{StreamName: "ListAndWatch", ServerStreams: true}
	stream, err := conn.NewStream(context.Background(), description, "/v1beta1.DevicePlugin/ListAndWatch")
	if err == nil {
		err = stream.SendMsg(&Empty{})
	}
	if err == nil {
		err = stream.CloseSend()
	}
	for err == nil {
		answer := &ListAndWatchResponse{}
		if err = stream.RecvMsg(answer); err != nil {
			break
		}
		devices := []fields{}
		for _, device := range answer.Devices {
			nodes := []int64{}
			if device.Topology != nil {
				for _, node := range device.Topology.Nodes {
					nodes = append(nodes, node.ID)
				}
			}
			devices = append(devices, fields{"id": device.ID, "health": device.Health, "nodes": nodes})
		}
		say("devices", fields{"resource": resource, "devices": devices})
	}
	code := strings.ToUpper(status.Code(err).String())
	if err != nil && err.Error() == "EOF" {
		code = "OK"
	}
	say("ended", fields{"resource": resource, "code": code})
}

func register(request *RegisterRequest) error {
	lock.Lock()
	refuse := refusals > 0
	if refuse {
		refusals--
	}
	lock.Unlock()
	if refuse {
		say("refused", fields{"resource": request.ResourceName})
		return status.Error(codes.Unavailable, "not now")
	}
	if request.Version != "v1beta1" {
		return errors.New("unsupported version")
	}
	conn, err := dial(filepath.Join(directory, request.Endpoint))
	options := &DevicePluginOptions{}
	if err == nil {
		err = call(conn, "GetDevicePluginOptions", &Empty{}, options)
	}
	if err != nil {
		say("unreachable", fields{"resource": request.ResourceName, "cause": err.Error()})
		return fmt.Errorf("failed to dial device plugin: %v", err)
	}
	lock.Lock()
	plugins[request.ResourceName] = conn
	lock.Unlock()
	say("registered", fields{
		"resource":  request.ResourceName,
		"endpoint":  request.Endpoint,
		"preferred": options.GetPreferredAllocationAvailable && request.Options.GetPreferredAllocationAvailable,
		"pre_start": options.PreStartRequired,
	})
	go watch(request.ResourceName, conn)
	return nil
}

func ids(text string) []string {
	if text == "-" {
		return nil
	}
	return strings.Split(text, ",")
}

func allocate(conn *grpc.ClientConn, containers [][]string) (*AllocateResponse, error) {
	request, answer := &AllocateRequest{}, &AllocateResponse{}
	for _, container := range containers {
		request.ContainerRequests = append(request.ContainerRequests, &ContainerAllocateRequest{DevicesIDs: container})
	}
	return answer, call(conn, "Allocate", request, answer)
}

func obey(words []string) error {
	lock.Lock()
	conn := plugins[words[1]]
	lock.Unlock()
	switch words[0] {
	case "allocate":
		requests := [][]string{}
		for _, container := range words[2:] {
			requests = append(requests, ids(container))
		}
		answer, err := allocate(conn, requests)
		if err != nil {
			return err
		}
		containers := []fields{}
		for _, c := range answer.ContainerResponses {
			devices := [][]string{}
			for _, d := range c.Devices {
				devices = append(devices, []string{d.ContainerPath, d.HostPath, d.Permissions})
			}
			envs := c.Envs
			if envs == nil {
				envs = map[string]string{}
			}
			containers = append(containers, fields{"envs": envs, "devices": devices, "rest": len(c.Mounts) + len(c.Annotations)})
		}
		say("allocated", fields{"containers": containers})
	case "prefer":
		size, _ := strconv.Atoi(words[2])
		wish := &ContainerPreferredAllocationRequest{AvailableDeviceIDs: ids(words[3]), MustIncludeDeviceIDs: ids(words[4]), AllocationSize: int32(size)}
		request := &PreferredAllocationRequest{ContainerRequests: []*ContainerPreferredAllocationRequest{wish}}
		answer := &PreferredAllocationResponse{}
		if err := call(conn, "GetPreferredAllocation", request, answer); err != nil {
			return err
		}
		chosen := append([]string{}, answer.ContainerResponses[0].DeviceIDs...)
		say("preferred", fields{"ids": chosen})
	case "many":
		count, _ := strconv.Atoi(words[2])
		begin := time.Now()
		for i := 0; i < count; i++ {
			if _, err := allocate(conn, [][]string{ids(words[3])}); err != nil {
				return err
			}
		}
		say("done", fields{"calls": count, "seconds": time.Since(begin).Seconds()})
	case "hangup":
		return conn.Close()
	case "huge":
		count, _ := strconv.Atoi(words[2])
		container := make([]string, count)
		for i := range container {
			container[i] = strings.Repeat("x", 60)
		}
		if _, err := allocate(conn, [][]string{container}); err != nil {
			return err
		}
		say("allocated", fields{"containers": []fields{}})
	}
	return nil
}

func main() {
	refusals, _ = strconv.Atoi(os.Args[3])
	entries, err := os.ReadDir(directory)
	for _, entry := range entries {
		if os.Args[4] == "true" || entry.Name() == "kubelet.sock" {
			os.Remove(filepath.Join(directory, entry.Name()))
		}
	}
	listener, listenErr := net.Listen("unix", filepath.Join(directory, "kubelet.sock"))
	if err != nil || listenErr != nil {
		fmt.Fprintln(os.Stderr, err, listenErr)
		os.Exit(1)
	}
	server := grpc.NewServer()
	server.RegisterService(&registration, struct{}{})
	go server.Serve(listener)
	say("listening", fields{})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := obey(strings.Fields(lines.Text())); err != nil {
			say("failed", fields{"code": codeName(err), "text": status.Convert(err).Message()})
		}
	}
	server.Stop()
}

// codeName is the code as gRPC's specification writes it.
func codeName(err error) string {
	names := map[codes.Code]string{
		codes.InvalidArgument:    "INVALID_ARGUMENT",
		codes.FailedPrecondition: "FAILED_PRECONDITION",
		codes.OutOfRange:         "OUT_OF_RANGE",
		codes.ResourceExhausted:  "RESOURCE_EXHAUSTED",
	}
	if name, ok := names[status.Code(err)]; ok {
		return name
	}
	return status.Code(err).String()
}
