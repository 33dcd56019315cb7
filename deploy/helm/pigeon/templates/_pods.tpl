{{- define "pigeon.name" -}}
{{- printf "%s-%s" .root.Release.Name .part | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "pigeon.selector" -}}
app.kubernetes.io/name: pigeon
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "pigeon.labels" -}}
{{ include "pigeon.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "pigeon.image" -}}
{{- $image := .root.Values.image }}
{{- with index $image.digests .variant }}
{{- printf "%s@%s" $image.repository . }}
{{- else }}
{{- printf "%s:%s-%s" $image.repository ($image.tag | default .root.Chart.AppVersion) .variant }}
{{- end }}
{{- end }}

{{- define "pigeon.serviceAccount" -}}
{{- if .root.Values.serviceAccount.create }}
{{- .root.Values.serviceAccount.name | default .root.Release.Name }}
{{- else }}
{{- .root.Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "pigeon.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "pigeon.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* What every container of ours is given: settings, the part's secret, folders to write to. `env`: further variables. */}}
{{- define "pigeon.container" -}}
image: {{ include "pigeon.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "pigeon.containerSecurity" . | nindent 2 }}
env:
  {{- $own := .env | default dict }}
  {{- range $name, $value := merge (deepCopy $own) .root.Values.settings }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
envFrom:
  - secretRef: {name: {{ index .root.Values.secrets .part | default .root.Values.existingSecret }}}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: state, mountPath: /var/lib/pigeon}
  {{- if and .models .root.Values.models.existingClaim }}
  - {name: models, mountPath: /models}
  {{- end }}
{{- end }}

{{- define "pigeon.volumes" -}}
- {name: tmp, emptyDir: {}}
- {name: state, emptyDir: {}}
{{- if and .models .root.Values.models.existingClaim }}
- {name: models, persistentVolumeClaim: {claimName: {{ .root.Values.models.existingClaim }}}}
{{- end }}
{{- end }}

{{- define "pigeon.scheduling" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- else }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "pigeon.selector" . | nindent 8 }}
{{- end }}
{{- end }}

{{- /* A Deployment that serves /metrics, /live and /ready on metricsPort, with its PodDisruptionBudget. */}}
{{- define "pigeon.deployment" -}}
{{- $values := index .root.Values .part }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "pigeon.name" . }}
  labels: {{- include "pigeon.labels" . | nindent 4 }}
spec:
  {{- if not .scaled }}
  replicas: {{ $values.replicas }}
  {{- end }}
  selector:
    matchLabels: {{- include "pigeon.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "pigeon.labels" . | nindent 8 }}
      {{- with .root.Values.podAnnotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "pigeon.serviceAccount" . }}
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: {{ .grace }}
      securityContext: {{- include "pigeon.podSecurity" . | nindent 8 }}
      {{- include "pigeon.scheduling" . | nindent 6 }}
      containers:
        - name: {{ .part }}
          args: {{ toJson .args }}
          {{- include "pigeon.container" . | nindent 10 }}
          ports:
            - {name: metrics, containerPort: {{ .root.Values.metricsPort }}}
            {{- with .port }}
            - {name: http, containerPort: {{ . }}}
            {{- end }}
          # A restart helps only what makes no progress; whether stores can be reached is readiness.
          livenessProbe:
            httpGet: {path: /live, port: metrics}
            periodSeconds: 20
            timeoutSeconds: 10
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /ready, port: metrics}
            periodSeconds: 10
            timeoutSeconds: 10
          startupProbe:
            httpGet: {path: /live, port: metrics}
            periodSeconds: 5
            failureThreshold: 60
          resources: {{- toYaml $values.resources | nindent 12 }}
      volumes: {{- include "pigeon.volumes" . | nindent 8 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "pigeon.name" . }}
  labels: {{- include "pigeon.labels" . | nindent 4 }}
spec:
  {{- toYaml $values.podDisruptionBudget | nindent 2 }}
  selector:
    matchLabels: {{- include "pigeon.selector" . | nindent 6 }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ include "pigeon.name" . }}
  labels: {{- include "pigeon.labels" . | nindent 4 }}
spec:
  selector: {{- include "pigeon.selector" . | nindent 4 }}
  ports:
    - {name: metrics, port: {{ .root.Values.metricsPort }}, targetPort: metrics}
    {{- with .port }}
    - {name: http, port: {{ . }}, targetPort: http}
    {{- end }}
{{- end }}
