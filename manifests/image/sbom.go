package main

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// The bill of materials of an image, in SPDX 2.3 (JSON): the modules in each Go program,
// the Debian packages that files come from, and the files that neither explains.

type document struct {
	SPDXVersion       string         `json:"spdxVersion"`
	DataLicense       string         `json:"dataLicense"`
	SPDXID            string         `json:"SPDXID"`
	Name              string         `json:"name"`
	DocumentNamespace string         `json:"documentNamespace"`
	CreationInfo      creation       `json:"creationInfo"`
	Packages          []material     `json:"packages"`
	Relationships     []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

// material is one thing that the image is made of.
type material struct {
	SPDXID           string        `json:"SPDXID"`
	Name             string        `json:"name"`
	VersionInfo      string        `json:"versionInfo,omitempty"`
	DownloadLocation string        `json:"downloadLocation"`
	FilesAnalyzed    bool          `json:"filesAnalyzed"`
	Checksums        []checksum    `json:"checksums,omitempty"`
	ExternalRefs     []externalRef `json:"externalRefs,omitempty"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type externalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	Of   string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// sbom is the bill of materials of the image called name, which has this digest and
// is made of these layers.
func sbom(name, digest string, debian packages, layers ...tree) ([]byte, error) {
	found := map[string]material{} // by locator or path
	for _, layer := range layers {
		for to, e := range layer {
			if e.source == "" {
				continue
			}
			materials, err := madeOf(to, e.source, debian)
			if err != nil {
				return nil, err
			}
			for _, m := range materials {
				key := m.Name
				if len(m.ExternalRefs) > 0 {
					key = m.ExternalRefs[0].Locator
				}
				found[key] = m
			}
		}
	}
	d := document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", Name: name,
		DocumentNamespace: "https://github.com/k8s-ovs/k8s-ovs/spdx/" + strings.ReplaceAll(digest, ":", "-"),
		CreationInfo:      creation{Created: epoch.Format("2006-01-02T15:04:05Z"), Creators: []string{"Tool: k8s-ovs/manifests/image"}},
	}
	for i, m := range slices.SortedFunc(maps.Values(found), func(a, b material) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.VersionInfo, b.VersionInfo))
	}) {
		m.SPDXID = fmt.Sprintf("SPDXRef-%d", i+1)
		d.Packages = append(d.Packages, m)
		d.Relationships = append(d.Relationships, relationship{d.SPDXID, "DESCRIBES", m.SPDXID})
	}
	data, err := json.MarshalIndent(d, "", " ")
	return append(data, '\n'), err
}

// madeOf is what one file of the image, to, comes from.
func madeOf(to, source string, debian packages) ([]material, error) {
	if info, err := buildinfo.ReadFile(source); err == nil {
		materials := []material{module("stdlib", strings.TrimPrefix(info.GoVersion, "go")), module(info.Main.Path, info.Main.Version)}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			materials = append(materials, module(m.Path, m.Version))
		}
		return materials, nil
	}
	if name, version, ok := debian.owner(source); ok {
		return []material{{Name: name, VersionInfo: version, DownloadLocation: "NOASSERTION",
			ExternalRefs: []externalRef{{"PACKAGE-MANAGER", "purl", "pkg:deb/debian/" + name + "@" + version}}}}, nil
	}
	data, err := os.ReadFile(source)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	return []material{{Name: to, DownloadLocation: "NOASSERTION", Checksums: []checksum{{"SHA256", hex.EncodeToString(sum[:])}}}}, nil
}

func module(path, version string) material {
	locator := "pkg:golang/" + path
	if version == "(devel)" {
		version = ""
	}
	if version != "" {
		locator += "@" + version
	}
	return material{Name: path, VersionInfo: version, DownloadLocation: "NOASSERTION", ExternalRefs: []externalRef{{"PACKAGE-MANAGER", "purl", locator}}}
}

// packages are the Debian packages of this machine: who owns which file, and the
// versions. There are none on other systems.
type packages struct{ owners, versions map[string]string }

// debianPackages reads dpkg's database below dir: dpkg-query(1) would be asked once a file.
func debianPackages(dir string) (packages, error) {
	p := packages{owners: map[string]string{}, versions: map[string]string{}}
	lists, err := filepath.Glob(filepath.Join(dir, "info", "*.list"))
	if err != nil || len(lists) == 0 {
		return p, err
	}
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			return p, err
		}
		name, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(list), ".list"), ":")
		for file := range strings.Lines(string(data)) {
			p.owners[merged(strings.TrimSpace(file))] = name
		}
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return p, err
	}
	name := ""
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Package: "); ok {
			name = value
		} else if value, ok := strings.CutPrefix(lines.Text(), "Version: "); ok {
			p.versions[name] = value
		}
	}
	return p, nil
}

// owner is the package that a file of this machine belongs to.
func (p packages) owner(file string) (name, version string, ok bool) {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return "", "", false
	}
	for _, f := range []string{real, file} {
		if name, ok = p.owners[merged(path.Clean(f))]; ok {
			return name, p.versions[name], true
		}
	}
	return "", "", false
}

// merged is the path where systems with one /usr have the file; packages may still name
// it elsewhere.
func merged(file string) string {
	for _, top := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(file, top) {
			return "/usr" + file
		}
	}
	return file
}
