{{/* Names. Parts are api, dispatcher, scheduler, worker, migrate, verify; most helpers take (dict "root" $ "part" "api"). */}}
{{- define "eorouter.fullname" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "eorouter" $name) }}{{ $name = printf "%s-eorouter" $name }}{{ end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "eorouter.name" -}}
{{- printf "%s-%s" (include "eorouter.fullname" .root) .part -}}
{{- end }}

{{- define "eorouter.selector" -}}
app.kubernetes.io/name: eorouter
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "eorouter.match" -}}
{"matchLabels": {{ include "eorouter.selector" . | fromYaml | toJson }}}
{{- end }}

{{- define "eorouter.labels" -}}
{{ include "eorouter.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: eorouter
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "eorouter.meta" -}}
name: {{ include "eorouter.name" . }}
namespace: {{ .root.Release.Namespace }}
labels: {{- include "eorouter.labels" . | nindent 2 }}
{{- end }}

{{/* Takes (dict "root" $ "of" "api" or "worker"). */}}
{{- define "eorouter.image" -}}
{{- $image := index .root.Values.image .of -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- define "eorouter.scheduler.address" -}}
tls://{{ include "eorouter.name" (dict "root" . "part" "scheduler") }}.{{ .Release.Namespace }}.svc:8786
{{- end }}

{{/* Variables, in groups. A part that is not given a group does not know what is in it. */}}

{{- define "eorouter.env.all" -}}
- {name: EOROUTER_DATA_DIR, value: /var/lib/eorouter}
- {name: EOROUTER_LOG_FORMAT, value: {{ .Values.settings.log_format | quote }}}
- {name: EOROUTER_LOG_LEVEL, value: {{ .Values.settings.log_level | quote }}}
{{- if .Values.otlpEndpoint }}
- {name: EOROUTER_OTLP_ENDPOINT, value: {{ .Values.otlpEndpoint | quote }}}
{{- end }}
{{- end }}

{{- define "eorouter.env.database" -}}
- name: EOROUTER_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.database.existingSecret }}, key: {{ .Values.database.key }}}}
{{- end }}

{{- define "eorouter.env.objects" -}}
{{- range $name, $value := .Values.objects.environment }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- range $name, $key := .Values.objects.variables }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.objects.existingSecret }}, key: {{ $key }}}}
{{- end }}
{{- end }}

{{- define "eorouter.env.service" -}}
{{ include "eorouter.env.database" . }}
- name: EOROUTER_SECRET
  valueFrom: {secretKeyRef: {name: {{ .Values.secret.existingSecret }}, key: {{ .Values.secret.key }}}}
- {name: EOROUTER_OBJECTS_URL, value: {{ .Values.objects.url | quote }}}
- {name: EOROUTER_PUBLIC_URL, value: {{ .Values.publicUrl | quote }}}
{{- range $name, $value := omit .Values.settings "log_format" "log_level" }}
- {name: EOROUTER_{{ $name | upper }}, value: {{ include "eorouter.text" $value | quote }}}
{{- end }}
{{- end }}

{{/* Helm holds numbers as floating point and would write 10737418240 with an exponent. */}}
{{- define "eorouter.text" -}}
{{- if kindIs "float64" . }}{{ if eq (floor .) . }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{- define "eorouter.env.tls" -}}
- {name: EOROUTER_TLS_CA, value: /etc/eorouter/tls/ca.crt}
- {name: EOROUTER_TLS_CERTIFICATE, value: /etc/eorouter/tls/tls.crt}
- {name: EOROUTER_TLS_KEY, value: /etc/eorouter/tls/tls.key}
{{- end }}

{{- define "eorouter.env.workers" -}}
- {name: EOROUTER_WORKER_THREADS, value: {{ .Values.worker.threads | quote }}}
- {name: EOROUTER_WORKER_MEMORY_MB, value: {{ .Values.worker.memoryMiB | quote }}}
{{- end }}

{{/* What all pods have in common. */}}

{{- define "eorouter.pod" -}}
{{- $part := index .root.Values .part | default dict -}}
serviceAccountName: {{ include "eorouter.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false # their variables, EOROUTER_…_PORT, would pass for settings
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- range . }}
  - {name: {{ . }}}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {{ include "eorouter.match" $ }}
{{- end }}
{{- end }}

{{- define "eorouter.container" -}}
image: {{ include "eorouter.image" (dict "root" .root "of" .image) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* numba only reads a cache that it can write, and the image is read-only: the kernels are copied to where it can. */}}
{{- define "eorouter.kernels" -}}
- name: kernels
  {{- include "eorouter.container" . | nindent 2 }}
  command: [cp, -R, /var/cache/eorouter/., /kernels/]
  resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {memory: 64Mi}}
  volumeMounts:
    - {name: kernels, mountPath: /kernels}
{{- end }}

{{- define "eorouter.mounts" -}}
- {name: data, mountPath: /var/lib/eorouter}
- {name: tmp, mountPath: /tmp}
- {name: kernels, mountPath: /var/cache/eorouter}
{{- end }}

{{/* Takes "scratch" too. */}}
{{- define "eorouter.volumes" -}}
- {name: data, emptyDir: {sizeLimit: {{ .scratch }}}}
- {name: tmp, emptyDir: {sizeLimit: {{ .scratch }}}}
- {name: kernels, emptyDir: {sizeLimit: 256Mi}}
{{- end }}

{{- define "eorouter.volumes.tls" -}}
- name: tls
  secret: {secretName: {{ .Values.tls.existingSecret }}, defaultMode: 0440}
{{- end }}

{{- define "eorouter.mounts.tls" -}}
- {name: tls, mountPath: /etc/eorouter/tls, readOnly: true}
{{- end }}

{{/* A probe: a connection to the scheduler stands. Takes "period" and "failures". */}}
{{- define "eorouter.connected" -}}
exec: {command: [python, -I, /opt/eorouter/health.py, connected, "8786"]}
periodSeconds: {{ .period }}
timeoutSeconds: 10
failureThreshold: {{ .failures }}
{{- end }}

{{/* How Prometheus names what the monitors below find: a service by its name, pods by that of their PodMonitor. */}}
{{- define "eorouter.job.api" -}}
namespace="{{ .Release.Namespace }}",job="{{ include "eorouter.name" (dict "root" . "part" "api") }}"
{{- end }}

{{- define "eorouter.job.dispatcher" -}}
job="{{ .Release.Namespace }}/{{ include "eorouter.name" (dict "root" . "part" "dispatcher") }}"
{{- end }}
