"""A small healthy set of objects, written by hand; the failing examples of the lints spoil one thing at a time."""

import json
from typing import Any

from tests.k8s.manifests import name_of

Json = dict[str, Any]

_LABELS = {"app.kubernetes.io/name": "web", "app.kubernetes.io/part-of": "web", "app.kubernetes.io/component": "api"}
_META = {"namespace": "web", "labels": _LABELS}
_POD_SECURITY = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
_CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_RESOURCES = {
    "requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"},
    "limits": {"memory": "1Gi", "ephemeral-storage": "1Gi"},
}
_CONTAINER = {
    "name": "web",
    "image": "registry.invalid/web:1.2.3",
    "env": [
        {"name": "MODE", "value": "quiet"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "web-token", "key": "token"}}},
    ],
    "envFrom": [{"configMapRef": {"name": "settings"}}],
    "ports": [{"name": "http", "containerPort": 8080}],
    "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
    "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}},
    "securityContext": {**_CONTAINER_SECURITY, "readOnlyRootFilesystem": True},
    "resources": _RESOURCES,
    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "data", "mountPath": "/data"}],
}
_POD_SPEC = {
    "serviceAccountName": "web",
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "securityContext": _POD_SECURITY,
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": _LABELS},
        }
    ],
    "containers": [_CONTAINER],
    "volumes": [
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Mi"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
    ],
}
_RAY_POD = {
    "metadata": {"labels": {**_LABELS, "app.kubernetes.io/component": "ray"}},
    "spec": {
        "serviceAccountName": "web",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "karpenter.sh/capacity-type", "operator": "NotIn", "values": ["spot"]},
                                {"key": "cloud.google.com/gke-spot", "operator": "NotIn", "values": ["true"]},
                            ]
                        }
                    ]
                }
            }
        },
        "securityContext": _POD_SECURITY,
        "containers": [
            {
                "name": "ray",
                "image": "registry.invalid/ray:2.60.0",
                "lifecycle": {"preStop": {"exec": {"command": ["ray", "stop"]}}},
                "securityContext": _CONTAINER_SECURITY,
                "resources": _RESOURCES,
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp/ray"}],
            }
        ],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "400Mi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    },
}
_OBJECTS: list[Json] = [
    {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {**_META, "name": "all"},
        "spec": {"hard": {"requests.memory": "16Gi", "pods": "8"}},
    },
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "web", "labels": _LABELS}},
    {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {**_META, "name": "web"},
        "automountServiceAccountToken": False,
    },
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**_META, "name": "settings"},
        "data": {"SIMPO_RAY_SERVE_URL": "http://ray-head-svc:8265"},
    },
    {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {**_META, "name": "data"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    },
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**_META, "name": "web"},
        "spec": {
            "selector": {"matchLabels": _LABELS},
            "template": {"metadata": {"labels": _LABELS}, "spec": _POD_SPEC},
        },
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**_META, "name": "web"},
        "spec": {"selector": _LABELS, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    },
    {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {**_META, "name": "web"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": _LABELS}},
    },
    {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {**_META, "name": "ray-head"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"ray.io/node-type": "head"}}},
    },
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {**_META, "name": "default-deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    },
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {**_META, "name": "web"},
        "spec": {
            "podSelector": {"matchLabels": _LABELS},
            "policyTypes": ["Egress"],
            "egress": [
                {
                    "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}],
                    "ports": [{"port": 5432, "protocol": "TCP"}],
                }
            ],
        },
    },
    {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {**_META, "name": "ray"},
        "spec": {
            "rayVersion": "2.60.0",
            "authOptions": {"mode": "token", "secretName": "ray-token"},
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _RAY_POD},
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": 1,
                    "minReplicas": 1,
                    "maxReplicas": 1,
                    "rayStartParams": {},
                    "template": _RAY_POD,
                }
            ],
        },
    },
]


class Examples:
    """A copy of the healthy set that a test may spoil."""

    def __init__(self) -> None:
        """Nothing is spoilt yet."""
        # By way of JSON: a deep copy would keep head and worker sharing one template.
        self.objects: list[Json] = json.loads(json.dumps(_OBJECTS))

    def __getitem__(self, name: str) -> Json:
        """The object called Kind/name."""
        return next(thing for thing in self.objects if name_of(thing) == name)

    @property
    def pod(self) -> Json:
        """Spec of the Deployment's pod."""
        spec: Json = self["Deployment/web"]["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Json:
        """The Deployment's container."""
        container: Json = self.pod["containers"][0]
        return container

    @property
    def cluster(self) -> Json:
        """Spec of the RayCluster."""
        spec: Json = self["RayCluster/ray"]["spec"]
        return spec

    @property
    def head(self) -> Json:
        """Spec of the Ray head's pod."""
        spec: Json = self.cluster["headGroupSpec"]["template"]["spec"]
        return spec

    def add(self, kind: str, name: str, api_version: str = "v1", **fields: Any) -> None:
        """One more object, in the namespace of the others."""
        thing = {"apiVersion": api_version, "kind": kind, "metadata": {**_META, "name": name}, **fields}
        self.objects.append(json.loads(json.dumps(thing)))
