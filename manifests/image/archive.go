package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"path/filepath"
	"runtime"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
)

// build makes an image for this machine's architecture of one layer a tree, whose
// programs run as user.
func build(user string, layers ...tree) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, Created: v1.Time{Time: epoch},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"PATH=/usr/sbin:/usr/bin"}, WorkingDir: "/", User: user},
	})
	if err != nil {
		return nil, err
	}
	for _, t := range layers {
		data, err := t.tar()
		if err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data)), nil
		}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, err
		}
	}
	return img, nil
}

// writeArchive writes an OCI image layout as one file, with the manifest.json
// of `docker save` beside it for engines that only know that.
func writeArchive(path string, names []string, img v1.Image) error {
	files, err := archiveFiles(names, img)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, file := range slices.Sorted(maps.Keys(files)) {
		h := tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o644, Size: int64(len(files[file])), ModTime: epoch}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := w.Write(files[file]); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	// Whole or not at all: an archive cut short may be imported without a word.
	return atomicfile.Replace(path, buf.Bytes(), 0o644)
}

// archiveFiles is the content of the archive (OCI image specification 1.1,
// image-layout.md).
func archiveFiles(names []string, img v1.Image) (map[string][]byte, error) {
	blob := func(h v1.Hash) string { return filepath.Join("blobs", h.Algorithm, h.Hex) }
	manifest, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	digest, size, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		"oci-layout":                 []byte(`{"imageLayoutVersion":"1.0.0"}`),
		blob(digest):                 raw,
		blob(manifest.Config.Digest): config,
	}
	docker := tarball.Descriptor{Config: blob(manifest.Config.Digest), RepoTags: names}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for i, layer := range layers {
		file := blob(manifest.Layers[i].Digest)
		if files[file], err = compressed(layer); err != nil {
			return nil, err
		}
		docker.Layers = append(docker.Layers, file)
	}
	if files["manifest.json"], err = json.Marshal([]tarball.Descriptor{docker}); err != nil {
		return nil, err
	}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, name := range names {
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: types.OCIManifestSchema1, Digest: digest, Size: size,
			Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
			// containerd takes the image's name from here.
			Annotations: map[string]string{"io.containerd.image.name": "docker.io/" + name},
		})
	}
	files["index.json"], err = json.Marshal(index)
	return files, err
}

func compressed(layer v1.Layer) ([]byte, error) {
	r, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
