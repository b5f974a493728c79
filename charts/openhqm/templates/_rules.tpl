{{/* What the operator may do with the objects of namespaces. One rule per reason. */}}
{{- define "openhqm.operatorRules" -}}
# AsyncProxies: its own are made from workloads' annotations; all get a status and a finalizer.
- apiGroups: [openhqm.io]
  resources: [asyncproxies]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [openhqm.io]
  resources: [asyncproxies/status]
  verbs: [patch]
- apiGroups: [openhqm.io]
  resources: [asyncproxies/finalizers]
  verbs: [update]
# Workloads: one label and one annotation of the template; replicas through their scale.
- apiGroups: [apps]
  resources: [deployments, statefulsets, daemonsets]
  verbs: [get, list, watch, patch]
- apiGroups: [apps]
  resources: [deployments/scale, statefulsets/scale]
  verbs: [get, patch]
# Pods: seen; idle ones are marked to go first.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
# Services: seen; with interception ServicePort their targetPort is switched.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch]
# Settings of sidecars, and the Secrets that go with them: read by name, never listed, never changed.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create]
# Whoever else scales is seen, so that there are never two.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch{{ if .Values.externalMetrics.enabled }}, create, patch, delete{{ end }}]
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, watch{{ if .Values.keda.enabled }}, create, patch, delete{{ end }}]
# Gateways of workloads at zero. Once they are turned off, those there are stand in until the workload serves.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [{{ if .Values.gateway.enabled }}create, {{ end }}delete]
- apiGroups: [""]
  resources: [services]
  verbs: [{{ if .Values.gateway.enabled }}create, {{ end }}delete]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch, {{ if .Values.gateway.enabled }}create, {{ end }}patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, {{ if .Values.gateway.enabled }}create, patch, {{ end }}delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* What the injector may do with the objects of namespaces. */}}
{{- define "openhqm.injectorRules" -}}
- apiGroups: [openhqm.io]
  resources: [asyncproxies]
  verbs: [get, list, watch]
{{- end }}

{{/* A Role in rbac.namespace and its binding: list of the root, the component and the rules. */}}
{{- define "openhqm.namespacedRole" -}}
{{- $root := index . 0 -}}
{{- $name := printf "%s-%s" (include "openhqm.name" $root) (index . 1) -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $root.Values.rbac.namespace }}
  labels: {{- include "openhqm.labels" . | nindent 4 }}
rules: {{- index . 2 | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $root.Values.rbac.namespace }}
  labels: {{- include "openhqm.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}

{{/* A binding of a ClusterRole of the same name: list of the root and the component. */}}
{{- define "openhqm.clusterBinding" -}}
{{- $root := index . 0 -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ include "openhqm.clusterName" $root }}-{{ index . 1 }}
  labels: {{- include "openhqm.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ include "openhqm.clusterName" $root }}-{{ index . 1 }}
subjects:
  - kind: ServiceAccount
    name: {{ include "openhqm.name" $root }}-{{ index . 1 }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}

{{/* Secrets with the webhook's certificates, as a YAML list. */}}
{{- define "openhqm.certificateSecrets" -}}
{{- if eq .Values.webhook.certs.mode "operator" -}}
[{{ include "openhqm.name" . }}-injector-ca, {{ include "openhqm.tlsSecret" . }}]
{{- else -}}
[{{ include "openhqm.tlsSecret" . }}]
{{- end -}}
{{- end }}
