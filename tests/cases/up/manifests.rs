//! Plain Kubernetes manifests, as people write them.

/// A Namespace with or without the mesh.
pub(crate) fn namespace(name: &str, meshed: bool) -> String {
    let inject = if meshed { "enabled" } else { "disabled" };
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  annotations: {{remora.io/inject: {inject}}}\n---\n"
    )
}

/// A Service for the pods labelled `app: NAME`.
pub(crate) fn service(namespace: &str, name: &str, port: u16, target: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{selector: {{app: {name}}}, ports: [{{port: {port}, targetPort: {target}}}]}}\n---\n"
    )
}

/// A Deployment whose one container listens on a port named `main`.
pub(crate) fn deployment(
    namespace: &str,
    name: &str,
    replicas: u32,
    port: u16,
    command: &[&str],
) -> String {
    let command = serde_json::to_string(command).unwrap();
    format!(
        r"apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: app
        command: {command}
        env: [{{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
        ports: [{{name: main, containerPort: {port}}}]
        readinessProbe: {{tcpSocket: {{port: main}}, periodSeconds: 1}}
---
"
    )
}

/// A pod that only waits, to run commands in.
pub(crate) fn idle(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers: [{{name: c, command: [sleep, \"1000\"]}}]\n---\n"
    )
}

/// A server that tells the name of its pod, by Python's standard library.
pub(crate) fn teller(namespace: &str, name: &str, replicas: u32) -> String {
    let command = ["/usr/bin/python3", "-m", "http.server", "8000", "--directory", "/etc"];
    deployment(namespace, name, replicas, 8000, &command) + &service(namespace, name, 80, "main")
}
