"""Jobs on Kubernetes with KubeRay: manifests rendered from `k8s/`, the API, and what the cluster says of a job."""
