#!/usr/bin/env bash
# build.sh VERSION FOLDER builds Kubernetes' API server, controller manager and scheduler from their Go module into the
# folder, once. The module's own go.mod serves, with its `replace X => ./staging/...` turned into versions.
set -euo pipefail
version=$1
folder=$2
[[ ! -e $folder/complete ]] || exit 0
mkdir -p "$folder"
cd "$folder"

module=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
{
  sed -e 's/^module .*/module gangway.test\/kubernetes/' \
    -e "s| => ./staging/src/\(.*\)| => \1 v0.${version#1.}|" "$module/go.mod"
  echo "require k8s.io/kubernetes v$version"
} > go.mod
cp "$module/go.sum" go.sum
echo "building Kubernetes $version into $folder: about 12 minutes on two cores"
programs=(kube-apiserver kube-controller-manager kube-scheduler)
CGO_ENABLED=0 GOFLAGS="-mod=mod ${GOFLAGS:-}" go build \
  -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$version" -o . "${programs[@]/#/k8s.io/kubernetes/cmd/}"
touch complete
