package plugin

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// conf is the network configuration as far as the plugin reads it. Fields that
// it does not know are other people's and ignored, as the specification wants.
type conf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	// Socket of the agent; cniapi.DefaultSocket if empty.
	Socket string `json:"socket"`
	// DNS goes into the result as it is.
	DNS           types.DNS     `json:"dns"`
	RuntimeConfig runtimeConfig `json:"runtimeConfig"`
	// Args are what a runtime adds to the configuration (CNI conventions, "args").
	Args struct {
		CNI struct {
			MAC string   `json:"mac"`
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
	// PrevResult is for CHECK. In ADD it would be an earlier plugin's of a chain:
	// it is suppressed, as a plugin that makes the interface may (section "ADD").
	PrevResult json.RawMessage `json:"prevResult"`
	// ValidAttachments is GC's list. The text of the specification once had the
	// second name; libcni writes both.
	ValidAttachments    json.RawMessage `json:"cni.dev/valid-attachments"`
	OldValidAttachments json.RawMessage `json:"cni.dev/attachments"`
}

type runtimeConfig struct {
	Bandwidth *cniapi.Bandwidth `json:"bandwidth"`
	// MAC and IPs are the capabilities "mac" and "ips" (CNI conventions).
	MAC string   `json:"mac"`
	IPs []string `json:"ips"`
}

// wishes are what CNI conventions let a runtime ask for, and what no pod of ours can
// have: its address is from its node's subnet, and its MAC follows from the address. A
// pod that took another would be cut off, so ADD says no instead.
func (c conf) wishes(pod podArgs) error {
	for _, w := range []struct {
		field, value string
		code         uint
	}{
		{"CNI_ARGS: MAC", pod.mac, cniapi.CodeInvalidEnv}, {"CNI_ARGS: IP", pod.ip, cniapi.CodeInvalidEnv},
		{"runtimeConfig.mac", c.RuntimeConfig.MAC, cniapi.CodeUnsupportedField},
		{"runtimeConfig.ips", strings.Join(c.RuntimeConfig.IPs, ","), cniapi.CodeUnsupportedField},
		{"args.cni.mac", c.Args.CNI.MAC, cniapi.CodeUnsupportedField},
		{"args.cni.ips", strings.Join(c.Args.CNI.IPs, ","), cniapi.CodeUnsupportedField},
	} {
		if w.value != "" {
			return cniapi.Errorf(w.code, "%s: %s cannot be had", w.field, w.value).
				WithDetails("k8s-ovs gives a pod an address of its node's subnet and the MAC that follows from it; take the request out of the pod or the network configuration")
		}
	}
	return nil
}

// maxSocketPath is sun_path less its final NUL (unix(7)).
const maxSocketPath = 107

// load makes a request of what the runtime gave. For DEL, everything but the
// attachment's key is left out where it is malformed: ADD did not accept it
// either, and DEL must not fail for it.
func load(cmd cniapi.Command, args *skel.CmdArgs) (conf, cniapi.Request, error) {
	c, err := parseConf(args.StdinData, cmd)
	if err != nil {
		return conf{}, cniapi.Request{}, err
	}
	req := cniapi.Request{
		Version:     cniapi.Version,
		Command:     cmd,
		NetworkName: c.Name,
		CNIVersion:  c.CNIVersion,
	}
	switch cmd {
	case cniapi.Status:
		return c, req, req.Validate()
	case cniapi.GC:
		if req.ValidAttachments, err = c.validAttachments(); err != nil {
			return conf{}, cniapi.Request{}, err
		}
		return c, req, req.Validate()
	}
	req.ContainerID, req.IfName, req.Netns = args.ContainerID, args.IfName, args.Netns
	pod, err := parseArgs(args.Args)
	if err != nil && cmd != cniapi.Del {
		return conf{}, cniapi.Request{}, err
	}
	req.PodNamespace, req.PodName, req.PodUID = pod.namespace, pod.name, pod.uid
	switch cmd {
	case cniapi.Add:
		if err := c.wishes(pod); err != nil {
			return conf{}, cniapi.Request{}, err
		}
		req.Bandwidth = c.RuntimeConfig.Bandwidth
	case cniapi.Check:
		req.Bandwidth = c.RuntimeConfig.Bandwidth
		req.PrevResult, err = c.prevResult()
		if err != nil {
			return conf{}, cniapi.Request{}, err
		}
	case cniapi.Del:
		forgive(&req)
	}
	return c, req, req.Validate()
}

// forgive leaves out of a DEL what is malformed and not needed.
func forgive(req *cniapi.Request) {
	if cniapi.ValidateNetnsPath(req.Netns) != nil {
		req.Netns = ""
	}
	if bare := (cniapi.Request{Version: req.Version, Command: cniapi.Del, ContainerID: req.ContainerID, IfName: req.IfName}); bare.Validate() != nil {
		return // that is for Validate to say
	}
	if req.Validate() != nil {
		req.PodNamespace, req.PodName, req.PodUID = "", "", ""
	}
}

// parseConf reads the network configuration. DEL reads no more of it than it
// needs, so that no other field can keep it from its work.
func parseConf(data []byte, cmd cniapi.Command) (conf, error) {
	var c conf
	var err error
	if cmd == cniapi.Del {
		var bare struct {
			CNIVersion string `json:"cniVersion"`
			Name       string `json:"name"`
			Socket     string `json:"socket"`
		}
		err = json.Unmarshal(data, &bare)
		c.CNIVersion, c.Name, c.Socket = bare.CNIVersion, bare.Name, bare.Socket
	} else {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		return conf{}, cniapi.Errorf(cniapi.CodeDecode, "network configuration is not valid JSON of its form: %w", err)
	}
	if c.Socket == "" {
		c.Socket = cniapi.DefaultSocket
	}
	if !filepath.IsAbs(c.Socket) || len(c.Socket) > maxSocketPath || strings.ContainsRune(c.Socket, 0) {
		return conf{}, cniapi.Errorf(cniapi.CodeInvalidConfig, "socket: %q is not an absolute path of at most %d bytes", c.Socket, maxSocketPath).
			WithDetails("leave it out of the network configuration for %s", cniapi.DefaultSocket)
	}
	return c, nil
}

// validAttachments is nil when the list is absent, which is not the same as
// empty. An explicit null is how Go runtimes write an empty list.
func (c conf) validAttachments() ([]cniapi.Attachment, error) {
	field, raw := "cni.dev/valid-attachments", c.ValidAttachments
	if raw == nil {
		field, raw = "cni.dev/attachments", c.OldValidAttachments
	}
	if raw == nil {
		return nil, nil
	}
	var list []types.GCAttachment
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, cniapi.Errorf(cniapi.CodeDecode, "%s: %w", field, err)
	}
	valid := make([]cniapi.Attachment, len(list))
	for i, a := range list {
		valid[i] = cniapi.Attachment{ContainerID: a.ContainerID, IfName: a.IfName}
	}
	return valid, nil
}

// prevResult is nil when there is none. It is of the configuration's version.
func (c conf) prevResult() (*cniapi.PrevResult, error) {
	if len(c.PrevResult) == 0 || string(c.PrevResult) == "null" {
		return nil, nil
	}
	var raw map[string]any
	if err := json.Unmarshal(c.PrevResult, &raw); err != nil {
		return nil, cniapi.Errorf(cniapi.CodeDecode, "prevResult: %w", err)
	}
	pc := types.PluginConf{CNIVersion: c.CNIVersion, RawPrevResult: raw}
	if err := version.ParsePrevResult(&pc); err != nil {
		return nil, cniapi.Errorf(cniapi.CodeDecode, "prevResult: %w", err)
	}
	res, err := types100.NewResultFromResult(pc.PrevResult)
	if err != nil {
		return nil, cniapi.Errorf(cniapi.CodeDecode, "prevResult: %w", err)
	}
	prev := &cniapi.PrevResult{}
	for i, itf := range res.Interfaces {
		if itf == nil {
			return nil, cniapi.Errorf(cniapi.CodeInvalidConfig, "prevResult.interfaces[%d] is null", i)
		}
		prev.Interfaces = append(prev.Interfaces, cniapi.PrevInterface{Name: itf.Name, MAC: itf.Mac, MTU: itf.Mtu, Sandbox: itf.Sandbox})
	}
	for i, ip := range res.IPs {
		if ip == nil {
			return nil, cniapi.Errorf(cniapi.CodeInvalidConfig, "prevResult.ips[%d] is null", i)
		}
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		ones, _ := ip.Address.Mask.Size()
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		prev.IPs = append(prev.IPs, cniapi.PrevIP{
			Address: netip.PrefixFrom(addr.Unmap(), ones), Gateway: gw.Unmap(), Interface: ip.Interface,
		})
	}
	return prev, nil
}

// podArgs is the pod as CNI_ARGS names it.
type podArgs struct{ namespace, name, uid, mac, ip string }

// parseArgs reads CNI_ARGS: KEY=VALUE, separated by semicolons. Keys that are
// not known are an error unless IgnoreUnknown is set, as with every other plugin.
// The error comes with what could be read.
func parseArgs(s string) (podArgs, error) {
	var pod podArgs
	var unknown string
	var err error
	ignore := false
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok && err == nil {
			err = cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_ARGS: %q is not of the form KEY=VALUE", pair)
		}
		switch key {
		case "K8S_POD_NAMESPACE":
			pod.namespace = value
		case "K8S_POD_NAME":
			pod.name = value
		case "K8S_POD_UID":
			pod.uid = value
		case "K8S_POD_INFRA_CONTAINER_ID": // the same as CNI_CONTAINERID
		case "IgnoreUnknown":
			v := strings.ToLower(value)
			ignore = v == "1" || v == "true"
		case "MAC":
			pod.mac = value
		case "IP":
			pod.ip = value
		default:
			unknown = key
		}
	}
	if err == nil && unknown != "" && !ignore {
		err = cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_ARGS: key %q is not known", unknown).
			WithDetails("with IgnoreUnknown=1 in CNI_ARGS the plugin passes over such keys")
	}
	return pod, err
}
