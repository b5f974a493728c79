{{/* Name in front of all objects' names; short enough for every suffix. */}}
{{- define "openhqm.name" -}}
{{- $name := .Values.fullnameOverride | default (contains "openhqm" .Release.Name | ternary .Release.Name (printf "%s-openhqm" .Release.Name)) -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of one component's objects: list of the root and the component's name. */}}
{{- define "openhqm.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: openhqm
{{ include "openhqm.selector" . }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What selects one component's Pods; never changes in the life of a release. */}}
{{- define "openhqm.selector" -}}
app.kubernetes.io/name: openhqm
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image: list of the root and its values. */}}
{{- define "openhqm.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.global.imageRegistry | default $image.registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end }}

{{- define "openhqm.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Of every Pod of the chart; passes Pod Security restricted. */}}
{{- define "openhqm.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "openhqm.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where a component's Pods run: list of the root, the component's name and its values. */}}
{{- define "openhqm.placement" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
{{- if $values.affinity }}
  {{- toYaml $values.affinity | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "openhqm.selector" (list $root $component) | nindent 14 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
{{- range . }}
  - labelSelector:
      matchLabels: {{- include "openhqm.selector" (list $root $component) | nindent 8 }}
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Full names of service accounts, as requests carry them. */}}
{{- define "openhqm.user" -}}
system:serviceaccount:{{ (index . 0).Release.Namespace }}:{{ include "openhqm.name" (index . 0) }}-{{ index . 1 }}
{{- end }}

{{/* The webhook configuration is cluster-wide: two releases in different namespaces must not share it. */}}
{{- define "openhqm.clusterName" -}}
{{- $name := include "openhqm.name" . -}}
{{- if eq $name .Release.Namespace }}{{ $name }}{{ else }}{{ printf "%s-%s" $name .Release.Namespace | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "openhqm.tlsSecret" -}}
{{- if eq .Values.webhook.certs.mode "provided" -}}
{{ .Values.webhook.certs.provided.secretName }}
{{- else -}}
{{ include "openhqm.name" . }}-injector-tls
{{- end -}}
{{- end }}

{{/* Whether a Redis is brought along; empty for no. */}}
{{- define "openhqm.bundlesRedis" -}}
{{- if and .Values.redis.enabled (not .Values.redis.external.url) (not .Values.redis.external.secretName) }}true{{ end -}}
{{- end }}

{{/* Whether there is a Redis for AsyncProxies that name no store; empty for no. */}}
{{- define "openhqm.hasStore" -}}
{{- if or .Values.redis.enabled .Values.redis.external.url .Values.redis.external.secretName }}true{{ end -}}
{{- end }}

{{- define "openhqm.redisSecret" -}}
{{ .Values.redis.auth.existingSecret | default (printf "%s-redis" (include "openhqm.name" .)) }}
{{- end }}

{{/* The store's address without credentials. */}}
{{- define "openhqm.storePublicUrl" -}}
{{- $external := .Values.redis.external -}}
{{- if include "openhqm.bundlesRedis" . -}}
redis://{{ include "openhqm.name" . }}-redis.{{ .Release.Namespace }}.svc:6379/0
{{- else if $external.publicUrl -}}
{{ $external.publicUrl }}
{{- else -}}
{{- $parts := urlParse $external.url -}}
{{ $parts.scheme }}://{{ $parts.host }}{{ $parts.path }}
{{- end -}}
{{- end }}

{{/* Whether the API server knows ValidatingAdmissionPolicies; empty for no. */}}
{{- define "openhqm.policyApi" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}true{{ end -}}
{{- end }}

{{/* What the cluster's administrator decides about every sidecar. */}}
{{- define "openhqm.platform" -}}
{{- $sidecar := .Values.sidecar -}}
{{- $image := include "openhqm.image" (list . $sidecar.image) -}}
image: {{ $image | quote }}
redirect_image: {{ if $sidecar.redirect }}{{ $image | quote }}{{ else }}null{{ end }}
pull_policy: {{ $sidecar.image.pullPolicy }}
pull_secrets: {{ toJson $sidecar.image.pullSecrets }}
resources: {{ toJson $sidecar.resources }}
uid: {{ $sidecar.uid | toJson }}
log: {{ toJson $sidecar.log }}
{{- end }}

{{- define "openhqm.injectorSettings" -}}
platform:
  {{- include "openhqm.platform" . | nindent 2 }}
namespaces: {{ if .Values.rbac.namespace }}[{{ .Values.rbac.namespace }}]{{ else }}[]{{ end }}
log: {{ toJson .Values.injector.log }}
{{- end }}

{{- define "openhqm.redisConfig" -}}
port 6379
bind * -::*
# All users are in the ACL file; whoever does not log in may do nothing but PING.
protected-mode no
aclfile /data/users.acl
dir /data
appendonly yes
appendfsync {{ .Values.redis.appendfsync }}
save ""
# What was accepted is never thrown away to make room.
maxmemory {{ .Values.redis.maxMemory }}
maxmemory-policy noeviction
{{- end }}

{{- define "openhqm.operatorSettings" -}}
lease:
  namespace: {{ .Release.Namespace }}
  name: {{ include "openhqm.name" . }}-operator
{{- if include "openhqm.hasStore" . }}
store:
  {{- /* Credentials come from the environment. */}}
  url: {{ if include "openhqm.bundlesRedis" . }}"redis://openhqm:${REDIS_PASSWORD}@{{ trimPrefix "redis://" (include "openhqm.storePublicUrl" .) }}"{{ else }}"${STORE_URL}"{{ end }}
  public_url: {{ include "openhqm.storePublicUrl" . | quote }}
{{- end }}
certificates:
  mode: {{ .Values.webhook.certs.mode }}
  namespace: {{ .Release.Namespace }}
  authority_secret: {{ include "openhqm.name" . }}-injector-ca
  leaf_secret: {{ include "openhqm.tlsSecret" . }}
  webhook: {{ include "openhqm.clusterName" . }}
  hosts:
    - {{ include "openhqm.name" . }}-injector.{{ .Release.Namespace }}.svc
    - {{ include "openhqm.name" . }}-injector.{{ .Release.Namespace }}.svc.cluster.local
  injector_labels: {{ include "openhqm.selector" (list . "injector") | replace ": " "=" | replace "\n" "," }}
{{- if .Values.gateway.enabled }}
gateway:
  {{- include "openhqm.platform" . | nindent 2 }}
{{- end }}
{{- if .Values.keda.enabled }}
keda:
  url: http://{{ include "openhqm.name" . }}-operator.{{ .Release.Namespace }}.svc:16030
{{- end }}
{{- if .Values.externalMetrics.enabled }}
metrics_api:
  certificate_folder: /etc/openhqm-operator-tls
{{- end }}
{{- with .Values.rbac.namespace }}
namespace: {{ . }}
{{- end }}
pod_security: {{ .Values.defaultPodSecurity }}
log: {{ toJson .Values.operator.log }}
{{- end }}

{{/* The store's credentials, for a container that reads the operator's settings. */}}
{{- define "openhqm.storeEnvironment" -}}
{{- if include "openhqm.bundlesRedis" . }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "openhqm.redisSecret" . }}, key: password}
{{- else if .Values.redis.external.secretName }}
- name: STORE_URL
  valueFrom:
    secretKeyRef: {name: {{ .Values.redis.external.secretName }}, key: {{ .Values.redis.external.secretKey }}}
{{- else if .Values.redis.external.url }}
- name: STORE_URL
  valueFrom:
    secretKeyRef: {name: {{ include "openhqm.name" . }}-store, key: url}
{{- end }}
{{- end }}

{{/* Who may read metrics. */}}
{{- define "openhqm.metricsFrom" -}}
{{- with .Values.networkPolicy.metricsFrom -}}
- namespaceSelector:
    matchLabels: {{- toYaml . | nindent 6 }}
{{- else -}}
- namespaceSelector: {}
{{- end }}
{{- end }}
