# syntax=docker/dockerfile:1
# The image of every pod: Ray's head, workers, submitter and index replicas. k8s/README.md says how it is built.
# The wheels contain the CUDA libraries, so on a machine without a GPU --build-arg BASE=ubuntu:24.04 is enough; both
# have the same Python.
ARG BASE=nvidia/cuda:13.0.0-base-ubuntu24.04

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY k8s/image/ /image/
RUN /image/packages.sh python3-venv
COPY pyproject.toml constraints.txt README.md LICENSE /source/
COPY k8s/ /source/k8s/
COPY index/ /source/index/
COPY fsl_dist/ /source/fsl_dist/
COPY tune/ /source/tune/
COPY cluster/ /source/cluster/
RUN /image/install.sh /source /opt/fsl-dist && /image/sbom.sh /source /opt/fsl-dist

FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY k8s/image/ /image/
# wget is what KubeRay's probes ask Ray with.
RUN /image/packages.sh python3 wget && /image/user.sh
COPY --from=build /opt/fsl-dist /opt/fsl-dist
ENV PATH=/opt/fsl-dist/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/fsl
RUN /image/check.sh
CMD ["fsl-dist", "--help"]
