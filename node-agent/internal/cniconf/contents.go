package cniconf

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// Network is the name of the network in the configuration, by which ours is known, and the type of its plugin.
const Network = "k8s-ovs"

// list is a network configuration list (CNI specification 1.1.0, section 1), as far as it is written or checked here.
type list struct {
	CNIVersion  string   `json:"cniVersion"`
	CNIVersions []string `json:"cniVersions,omitempty"`
	Name        string   `json:"name"`
	Plugins     []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	Socket       string          `json:"socket,omitempty"`
	SNAT         bool            `json:"snat,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
}

// Default is our plugin, which calls the agent at socket, and portmap for host ports.
func Default(socket string) []byte {
	ours := plugin{Type: Network, Capabilities: map[string]bool{"bandwidth": true}}
	if socket != cniapi.DefaultSocket {
		ours.Socket = socket
	}
	portmap := plugin{Type: "portmap", SNAT: true, Capabilities: map[string]bool{"portMappings": true}}
	// Runtimes that know 1.1.0 choose from the list, older ones take the single version.
	data, err := json.MarshalIndent(list{
		CNIVersion: "1.0.0", CNIVersions: []string{"1.0.0", "1.1.0"}, Name: Network, Plugins: []plugin{ours, portmap},
	}, "", "  ")
	if err != nil {
		panic(err) // of such types there is none
	}
	return append(data, '\n')
}

// Read returns the contents of a template and checks that it is a configuration of ours.
func Read(template string) ([]byte, error) {
	data, err := os.ReadFile(template)
	if err != nil {
		return nil, fmt.Errorf("template of the CNI configuration: %w", err)
	}
	var l list
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, fmt.Errorf("template of the CNI configuration %s is not valid JSON of its form: %w", template, err)
	}
	if l.CNIVersion == "" {
		return nil, fmt.Errorf("template of the CNI configuration %s has no cniVersion; write \"1.0.0\"", template)
	}
	if l.Name != Network {
		return nil, fmt.Errorf("template of the CNI configuration %s: its name is %q; it has to be %q, by which the agent knows its own", template, l.Name, Network)
	}
	if len(l.Plugins) == 0 || l.Plugins[0].Type != Network {
		return nil, fmt.Errorf("template of the CNI configuration %s: the first of its plugins has to be of type %q", template, Network)
	}
	return data, nil
}

// network is the name that a configuration has; false where it is none.
func network(data []byte) (name string, ok bool) {
	var named struct {
		Name string `json:"name"`
	}
	if json.Unmarshal(data, &named) != nil {
		return "", false
	}
	return named.Name, true
}

// Unfit names the plugins of a configuration that do not go behind ours, and what to do
// instead. docs/cni.md has the same, tested with the plugins themselves.
func Unfit(contents []byte) []string {
	var l struct {
		Plugins []struct {
			Type         string          `json:"type"`
			MAC          string          `json:"mac"`
			MTU          int             `json:"mtu"`
			Capabilities map[string]bool `json:"capabilities"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(contents, &l); err != nil {
		return []string{fmt.Sprintf("plugins: not of the form that is known: %v", err)}
	}
	var unfit []string
	for i, p := range l.Plugins {
		switch {
		case p.Type == Network && i > 0:
			unfit = append(unfit, Network+": it makes the interface, once, as the first plugin")
		case p.Type == "bandwidth":
			unfit = append(unfit, `bandwidth: leave it out and give k8s-ovs the capability "bandwidth": it limits pods itself, and this plugin fails for pods with limits or limits nothing`)
		case p.Type == "sbr":
			unfit = append(unfit, "sbr: leave it out: each interface of a pod answers by itself, and this plugin takes the pod's routes away")
		case p.Type == "tuning" && (p.MAC != "" || p.Capabilities["mac"]):
			unfit = append(unfit, "tuning with mac: leave mac out: a pod's MAC follows from its address, and with another it is cut off")
		case p.Type == "tuning" && p.MTU != 0:
			unfit = append(unfit, "tuning with mtu: leave mtu out and give the agent --mtu: it keeps pods' MTU what paths carry")
		}
	}
	return unfit
}
